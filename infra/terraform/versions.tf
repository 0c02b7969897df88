# The store, its rights and a Kubernetes cluster on AWS:
#   cd infra/terraform && terraform init && terraform apply -var bucket=... -var 'subnet_ids=[...]' -var vpc_id=...
terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.80, < 6.0"
    }
  }
}

provider "aws" {
  region = var.region
  default_tags {
    tags = { project = "atelier" }
  }
}
