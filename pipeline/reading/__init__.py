"""How sources read: files and archives in local folders, on S3 and on the web, each size bounded, each name checked."""
