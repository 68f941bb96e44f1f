"""A guarded model behind MLflow's scoring protocol: what is asked, what is answered, and what is counted and kept."""
