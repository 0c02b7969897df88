# What pods (EKS Pod Identity) and machines of `ray up` may do in the store. Ray writes and removes (checkpoints that
# newer ones replace); Airflow publishes and promotes, and removes nothing.
locals {
  bucket_arn  = "arn:aws:s3:::${var.bucket}"
  source_arns = [for bucket in var.source_buckets : "arn:aws:s3:::${bucket}"]

  look = {
    Effect   = "Allow"
    Action   = ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"]
    Resource = [local.bucket_arn]
  }
  write  = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
  read   = { Effect = "Allow", Action = ["s3:GetObject", "s3:ListBucket"], Resource = flatten([for arn in local.source_arns : [arn, "${arn}/*"]]) }
  source = length(var.source_buckets) > 0 ? [local.read] : []

  # By the service accounts of kubernetes/access.yaml.
  roles = {
    ray     = concat(local.write, ["s3:DeleteObject"])
    airflow = local.write
  }
  accounts = {
    atelier-ray-head   = "ray"
    atelier-ray-worker = "ray"
    atelier-airflow    = "airflow"
  }
}

resource "aws_iam_role" "pod" {
  for_each = local.roles
  name     = "${var.name}-${each.key}"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [{
        Effect    = "Allow"
        Principal = { Service = "pods.eks.amazonaws.com" }
        Action    = ["sts:AssumeRole", "sts:TagSession"]
      }],
      each.key != "ray" ? [] : [{
        Effect    = "Allow"
        Principal = { Service = "ec2.amazonaws.com" }
        Action    = ["sts:AssumeRole"]
      }],
    )
  })
}

resource "aws_iam_role_policy" "store" {
  for_each = local.roles
  name     = "store"
  role     = aws_iam_role.pod[each.key].name
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = concat([local.look, { Effect = "Allow", Action = each.value, Resource = ["${local.bucket_arn}/*"] }], local.source)
  })
}

resource "aws_eks_pod_identity_association" "pod" {
  for_each        = local.accounts
  cluster_name    = aws_eks_cluster.this.name
  namespace       = "atelier"
  service_account = each.key
  role_arn        = aws_iam_role.pod[each.value].arn
}

# For `ray up` (../ray-up.yaml): the machines' profile. A head that starts machines needs EC2 rights of its own, too.
resource "aws_iam_instance_profile" "ray" {
  name = "${var.name}-ray"
  role = aws_iam_role.pod["ray"].name
}
