data "aws_iam_policy_document" "assume" {
  for_each = local.zones

  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = [var.oidc_provider_arn]
    }

    condition {
      test     = "StringEquals"
      variable = "${var.oidc_issuer}:sub"
      values   = ["system:serviceaccount:vetgate-${each.key}:${each.value.account}"]
    }

    condition {
      test     = "StringEquals"
      variable = "${var.oidc_issuer}:aud"
      values   = ["sts.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "zone" {
  for_each = local.zones

  name                 = "${var.name}-${each.key}"
  assume_role_policy   = data.aws_iam_policy_document.assume[each.key].json
  max_session_duration = 3600
}

# Without a condition on the prefix: S3 answers a name that is not there with 404 only to those who may list the bucket,
# and vetgate tells absence from refusal by it. What can be learned so is names, which are digests.
data "aws_iam_policy_document" "store" {
  for_each = local.store

  statement {
    sid       = "Find"
    actions   = ["s3:ListBucket"]
    resources = [var.bucket_arns["store"]]
  }

  dynamic "statement" {
    for_each = length(each.value.reads) > 0 ? [each.value.reads] : []

    content {
      sid       = "Read"
      actions   = ["s3:GetObject"]
      resources = [for prefix in statement.value : "${var.bucket_arns["store"]}/${prefix}/*"]
    }
  }

  # that nothing is written over, the bucket's own policy sees to
  dynamic "statement" {
    for_each = length(concat(each.value.creates, each.value.replaces)) > 0 ? [concat(each.value.creates, each.value.replaces)] : []

    content {
      sid       = "Write"
      actions   = ["s3:GetObject", "s3:PutObject"]
      resources = concat([for prefix in statement.value : "${var.bucket_arns["store"]}/${prefix}/*"], ["${var.bucket_arns["store"]}/.conditional-writes"])
    }
  }
}

resource "aws_iam_role_policy" "store" {
  for_each = local.store

  name   = "store"
  role   = aws_iam_role.zone[each.key].id
  policy = data.aws_iam_policy_document.store[each.key].json
}

data "aws_iam_policy_document" "read" {
  for_each = {
    data      = var.bucket_arns["reference"]
    artifacts = var.bucket_arns["artifacts"]
  }

  statement {
    sid       = "Find"
    actions   = ["s3:ListBucket"]
    resources = [each.value]
  }

  statement {
    sid       = "Read"
    actions   = ["s3:GetObject"]
    resources = ["${each.value}/*"]
  }
}

data "aws_iam_policy_document" "write_artifacts" {
  statement {
    sid       = "Find"
    actions   = ["s3:ListBucket"]
    resources = [var.bucket_arns["artifacts"]]
  }

  statement {
    sid       = "Write"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"]
    resources = ["${var.bucket_arns["artifacts"]}/mlflow/*"]
  }
}

resource "aws_iam_role_policy" "data" {
  for_each = { for zone, may in local.zones : zone => may if may.data == "read" }

  name   = "reference-data"
  role   = aws_iam_role.zone[each.key].id
  policy = data.aws_iam_policy_document.read["data"].json
}

resource "aws_iam_role_policy" "artifacts" {
  for_each = { for zone, may in local.zones : zone => may if may.artifacts != "none" }

  name   = "artifacts"
  role   = aws_iam_role.zone[each.key].id
  policy = each.value.artifacts == "write" ? data.aws_iam_policy_document.write_artifacts.json : data.aws_iam_policy_document.read["artifacts"].json
}

data "aws_iam_policy_document" "key" {
  statement {
    sid       = "EncryptedObjects"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [var.kms_key_arn]
  }
}

resource "aws_iam_role_policy" "key" {
  for_each = local.zones

  name   = "key"
  role   = aws_iam_role.zone[each.key].id
  policy = data.aws_iam_policy_document.key.json
}
