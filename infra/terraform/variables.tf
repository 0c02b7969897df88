variable "region" {
  description = "AWS region of all of it."
  type        = string
  default     = "eu-central-1"
}

variable "name" {
  description = "Name of the cluster and prefix of the roles."
  type        = string
  default     = "atelier"
}

variable "bucket" {
  description = "Name of the bucket that becomes the store: s3://BUCKET/atelier. Names of buckets are shared by all of AWS."
  type        = string
}

variable "source_buckets" {
  description = "Buckets that raw images are read from. They are not made here, and never written to."
  type        = list(string)
  default     = []
}

variable "vpc_id" {
  description = "Network of the cluster. It is not made here."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets of the control plane and of the machines without GPUs, in two zones at least."
  type        = list(string)
  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "Expected two subnets at least, in different zones: EKS takes no fewer."
  }
}

variable "gpu_subnet_id" {
  description = "The one subnet of the GPU machines: gradients between zones cost money and time. Null: the first of subnet_ids."
  type        = string
  default     = null
}

variable "route_table_ids" {
  description = "Route tables of the subnets; the store is reached by an endpoint in them, not by NAT. Empty: no endpoint."
  type        = list(string)
  default     = []
}

variable "endpoint_public_access_cidrs" {
  description = "Addresses that may reach the API server of Kubernetes from outside. Empty: only from the network itself."
  type        = list(string)
  default     = []
}

variable "kubernetes_version" {
  description = "Version of Kubernetes."
  type        = string
  default     = "1.34"
}

variable "ray_up" {
  description = "Make the profile of the head of ../ray-up.yaml, too, which may start and end machines of that cluster."
  type        = bool
  default     = false
}

variable "cpu_instance_types" {
  description = "Machines for ingest and evaluation."
  type        = list(string)
  default     = ["m7i.4xlarge", "m7a.4xlarge"]
}

variable "gpu_instance_types" {
  description = "Machines for training, of eight GPUs each."
  type        = list(string)
  default     = ["p5en.48xlarge"]
}

variable "gpu_capacity_type" {
  description = "SPOT, ON_DEMAND or CAPACITY_BLOCK."
  type        = string
  default     = "SPOT"
  validation {
    condition     = contains(["SPOT", "ON_DEMAND", "CAPACITY_BLOCK"], var.gpu_capacity_type)
    error_message = "Expected SPOT, ON_DEMAND or CAPACITY_BLOCK."
  }
}

variable "max_cpu_machines" {
  description = "Most machines for ingest and evaluation."
  type        = number
  default     = 16
}

variable "max_gpu_machines" {
  description = "Most machines for training."
  type        = number
  default     = 8
}
