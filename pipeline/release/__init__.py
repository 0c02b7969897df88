"""What a release is made of, one idea a file; `pipeline.releases` is the way in."""
