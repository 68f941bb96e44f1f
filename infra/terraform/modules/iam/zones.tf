# What each trust zone does in the store, by prefix, as the code does it today. `creates` and `replaces` include reading
# the same names: a process that loses a conditional write checks whether it had won itself.
locals {
  zones = {
    # people and programs that submit; what a person asks beyond that, such as `vetgate status`, is asked in the gate's
    intake = {
      account   = "intake"
      reads     = ["attestations", "conversions", "ledger", "reports", "results"]
      creates   = ["quarantine", "submissions", "submitters"]
      replaces  = []
      data      = "none"
      artifacts = "none"
    }
    # opens models. It submits too: a repaired model, and a version registered in MLflow
    vet = {
      account   = "vet"
      reads     = ["attestations", "canaries", "submitters"]
      creates   = ["quarantine", "submissions", "inspections", "evidence", "invocations", "examinations", "repairs", "guards", "conversions", "registered", "reports", "results"]
      replaces  = ["leases"]
      data      = "read"
      artifacts = "write"
    }
    # judges, signs, promotes. It publishes the result of a submission that it gives up, and submits its own canaries
    gate = {
      account   = "gate"
      reads     = ["evidence", "invocations", "examinations", "repairs", "guards", "conversions", "registered", "submitters"]
      creates   = ["quarantine", "submissions", "canaries", "verdicts", "attestations", "ledger", "vetted", "promotions", "waivers", "approvals", "revocations", "rescans", "tampered", "reports", "results", "moves"]
      replaces  = ["leases", "probe"]
      data      = "read"
      artifacts = "write"
    }
    # loads what was vetted, and checks by itself that it was
    serving = {
      account   = "serving"
      reads     = ["attestations", "guards", "ledger", "moves", "promotions", "revocations", "vetted"]
      creates   = []
      replaces  = []
      data      = "none"
      artifacts = "none"
    }
    # MLflow shows artifacts to people; clients write them themselves
    servers = {
      account   = "servers"
      reads     = []
      creates   = []
      replaces  = []
      data      = "none"
      artifacts = "read"
    }
  }

  store = { for zone, may in local.zones : zone => may if length(concat(may.reads, may.creates, may.replaces)) > 0 }
}
