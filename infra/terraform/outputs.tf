output "store" {
  description = "ATELIER_STORE of kubernetes/namespace.yaml."
  value       = "s3://${aws_s3_bucket.store.bucket}/atelier"
}

output "cluster" {
  description = "For `aws eks update-kubeconfig --name`."
  value       = aws_eks_cluster.this.name
}

output "ray_instance_profile" {
  description = "IamInstanceProfile of the workers of ../ray-up.yaml."
  value       = aws_iam_instance_profile.ray.arn
}

output "ray_head_instance_profile" {
  description = "IamInstanceProfile of the head of ../ray-up.yaml; null without ray_up."
  value       = one(aws_iam_instance_profile.head[*].arn)
}
