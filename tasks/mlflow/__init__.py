"""What is written to and read from MLflow: vettings, promoted and submitted versions, aliases, webhooks."""
