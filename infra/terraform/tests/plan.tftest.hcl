# What a plan would make, computed with AWS's schema and without AWS: `terraform test`.
mock_provider "aws" {}

variables {
  bucket     = "atelier-example"
  vpc_id     = "vpc-0"
  subnet_ids = ["subnet-a", "subnet-b"]
}

run "store" {
  command = plan

  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.store.block_public_acls,
      aws_s3_bucket_public_access_block.store.block_public_policy,
      aws_s3_bucket_public_access_block.store.ignore_public_acls,
      aws_s3_bucket_public_access_block.store.restrict_public_buckets,
    ])
    error_message = "The store must not be public."
  }
  assert {
    condition     = strcontains(aws_s3_bucket_policy.store.policy, "aws:SecureTransport")
    error_message = "The store must refuse what does not come by TLS."
  }
  assert {
    condition     = length(aws_vpc_endpoint.store) == 0
    error_message = "Without route tables there is no endpoint."
  }
}

run "rights" {
  command = plan

  assert {
    condition     = !strcontains(aws_iam_role_policy.store["airflow"].policy, "Delete")
    error_message = "Airflow must not remove objects."
  }
  assert {
    condition     = strcontains(aws_iam_role_policy.store["ray"].policy, "s3:DeleteObject")
    error_message = "Ray removes checkpoints that newer ones replace."
  }
  assert {
    condition = alltrue([
      for policy in aws_iam_role_policy.store : alltrue([
        for statement in jsondecode(policy.policy).Statement :
        !contains(statement.Action, "s3:*") && !contains(statement.Resource, "*")
      ])
    ])
    error_message = "No role may do everything, or anything everywhere."
  }
  assert {
    condition     = length(aws_eks_pod_identity_association.pod) == 3
    error_message = "Each of the three service accounts has a role."
  }
}

run "sources_are_read_only" {
  command = plan
  variables {
    source_buckets = ["raw-images"]
  }
  assert {
    condition = alltrue([
      for policy in aws_iam_role_policy.store : alltrue([
        for statement in jsondecode(policy.policy).Statement :
        !contains(statement.Resource, "arn:aws:s3:::raw-images/*") || toset(statement.Action) == toset(["s3:GetObject", "s3:ListBucket"])
      ])
    ])
    error_message = "A source's bucket is only read."
  }
}

run "no_head_unless_asked_for" {
  command = plan

  assert {
    condition     = length(aws_iam_role.head) == 0 && length(aws_iam_instance_profile.head) == 0
    error_message = "Rights to start machines are made for `ray up` only."
  }
}

run "head_of_ray_up" {
  command = plan
  variables {
    ray_up = true
  }
  assert {
    condition     = aws_iam_role_policy.head["store"].policy == aws_iam_role_policy.store["ray"].policy
    error_message = "The head uses the store as its workers do."
  }
  assert {
    condition = alltrue([
      for statement in jsondecode(aws_iam_role_policy.head["machines"].policy).Statement :
      !contains(statement.Resource, "*") || tolist(statement.Action) == tolist(["ec2:DescribeInstances"])
    ])
    error_message = "Anywhere the head may only look."
  }
  assert {
    condition = alltrue([
      for statement in jsondecode(aws_iam_role_policy.head["machines"].policy).Statement :
      jsonencode(statement.Condition) == jsonencode({ StringEquals = { "aws:ResourceTag/ray-cluster-name" = "atelier" } })
      if contains(statement.Action, "ec2:TerminateInstances")
    ])
    error_message = "The head ends machines of its own cluster only."
  }
}

run "addons" {
  command = plan

  assert {
    condition     = alltrue([for addon in aws_eks_addon.this : addon.resolve_conflicts_on_create == "OVERWRITE"])
    error_message = "The add-ons take the place of those that a new cluster has."
  }
}

run "gpus_on_spot" {
  command = plan

  assert {
    condition     = toset([for taint in aws_eks_node_group.gpu.taint : taint.key]) == toset(["nvidia.com/gpu", "atelier/spot"])
    error_message = "Spot machines of GPUs carry both taints."
  }
  assert {
    condition     = aws_eks_node_group.gpu.subnet_ids == toset(["subnet-a"])
    error_message = "GPU machines stand in one zone."
  }
  assert {
    condition     = aws_eks_node_group.gpu.scaling_config[0].min_size == 0
    error_message = "Idle machines with GPUs are not kept."
  }
}

run "gpus_on_demand" {
  command = plan
  variables {
    gpu_capacity_type = "ON_DEMAND"
    gpu_subnet_id     = "subnet-b"
    route_table_ids   = ["rtb-0"]
  }
  assert {
    condition     = [for taint in aws_eks_node_group.gpu.taint : taint.key] == ["nvidia.com/gpu"]
    error_message = "Machines on demand carry no taint of spot."
  }
  assert {
    condition     = length(aws_vpc_endpoint.store) == 1
    error_message = "With route tables the store has an endpoint."
  }
}

run "one_subnet_is_refused" {
  command = plan
  variables {
    subnet_ids = ["subnet-a"]
  }
  expect_failures = [var.subnet_ids]
}
