# vetgate keeps quarantine, evidence, verdicts and vetted bytes under prefixes of one store (VETGATE_STORE), so these are
# one bucket here, and the roles of ../iam part it by prefix. Reference data (VETGATE_DATA_REMOTE) and MLflow's artifacts
# have buckets of their own. Results of Prefect stay on the workers' disks: nothing is read from them again.
locals {
  buckets = {
    store     = { locked = true }
    reference = { locked = false }
    artifacts = { locked = false }
  }
}

resource "aws_kms_key" "this" {
  description             = "Objects of ${var.name}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
}

resource "aws_s3_bucket" "this" {
  for_each = local.buckets

  bucket              = "${var.name}-${each.key}"
  object_lock_enabled = each.value.locked
}

resource "aws_s3_bucket_versioning" "this" {
  for_each = local.buckets

  bucket = aws_s3_bucket.this[each.key].id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  for_each = local.buckets

  bucket = aws_s3_bucket.this[each.key].id

  rule {
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = aws_kms_key.this.arn
    }
  }
}

resource "aws_s3_bucket_public_access_block" "this" {
  for_each = local.buckets

  bucket                  = aws_s3_bucket.this[each.key].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "this" {
  for_each = local.buckets

  bucket = aws_s3_bucket.this[each.key].id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

# The lock holds versions, not names: replacing a lease adds a version and is not hindered. The old versions of leases/*
# stay until the lock lets the rule below remove them: some hundred bytes for each renewal, every 40 s of a vetting. A
# bucket can lock by default only as a whole, and this price buys that nobody, also with the gate's credentials, can take
# back an attestation or a ledger entry within lock_days.
resource "aws_s3_bucket_object_lock_configuration" "this" {
  for_each = { for key, bucket in local.buckets : key => bucket if bucket.locked }

  bucket = aws_s3_bucket.this[each.key].id

  rule {
    default_retention {
      mode = var.lock_mode
      days = var.lock_days
    }
  }

  depends_on = [aws_s3_bucket_versioning.this]
}

# Nothing current expires: a rescan needs the quarantined bytes of whatever is in production, however old.
resource "aws_s3_bucket_lifecycle_configuration" "this" {
  for_each = local.buckets

  bucket = aws_s3_bucket.this[each.key].id

  rule {
    id     = "unfinished-uploads"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 2
    }
  }

  rule {
    id     = "old-versions"
    status = "Enabled"

    filter {
      prefix = each.key == "store" ? "leases/" : ""
    }

    noncurrent_version_expiration {
      noncurrent_days = each.key == "store" ? 1 : 180
    }
  }

  depends_on = [aws_s3_bucket_versioning.this]
}
