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

# For `ray up` (../ray-up.yaml): the profile of its workers.
resource "aws_iam_instance_profile" "ray" {
  name = "${var.name}-ray"
  role = aws_iam_role.pod["ray"].name
}

# And that of its head, which starts and ends them: Ray tags each machine with its cluster's name, which is this one's.
locals {
  machine   = "arn:aws:ec2:${var.region}:*:instance/*"
  of_others = ["image", "key-pair", "network-interface", "security-group", "spot-instances-request", "subnet", "volume"]
  launch = [
    { Effect = "Allow", Action = ["ec2:DescribeInstances"], Resource = ["*"] }, # AWS knows no narrower one
    {
      Effect   = "Allow"
      Action   = ["ec2:RunInstances"]
      Resource = [for kind in local.of_others : "arn:aws:ec2:${var.region}:*:${kind}/*"]
    },
    {
      Effect    = "Allow"
      Action    = ["ec2:RunInstances"]
      Resource  = [local.machine]
      Condition = { StringEquals = { "aws:RequestTag/ray-cluster-name" = var.name } }
    },
    {
      Effect    = "Allow"
      Action    = ["ec2:CreateTags"]
      Resource  = [local.machine]
      Condition = { StringEquals = { "ec2:CreateAction" = "RunInstances" } }
    },
    {
      Effect    = "Allow"
      Action    = ["ec2:CreateTags", "ec2:TerminateInstances"]
      Resource  = [local.machine]
      Condition = { StringEquals = { "aws:ResourceTag/ray-cluster-name" = var.name } }
    },
    {
      Effect    = "Allow"
      Action    = ["iam:PassRole"]
      Resource  = ["arn:aws:iam::*:role/${var.name}-ray"]
      Condition = { StringEquals = { "iam:PassedToService" = "ec2.amazonaws.com" } }
    },
  ]
}

resource "aws_iam_role" "head" {
  count = var.ray_up ? 1 : 0
  name  = "${var.name}-ray-head"
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Principal = { Service = "ec2.amazonaws.com" }, Action = "sts:AssumeRole" }]
  })
}

resource "aws_iam_role_policy" "head" {
  for_each = var.ray_up ? { store = aws_iam_role_policy.store["ray"].policy, machines = jsonencode({ Version = "2012-10-17", Statement = local.launch }) } : {}
  name     = each.key
  role     = aws_iam_role.head[0].name
  policy   = each.value
}

resource "aws_iam_instance_profile" "head" {
  count = var.ray_up ? 1 : 0
  name  = "${var.name}-ray-head"
  role  = aws_iam_role.head[0].name
}
