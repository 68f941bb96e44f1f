#!/bin/sh
# Run once by the PostgreSQL image on an empty data directory: a database and an owner for each server, closed to others.
set -eu

database() {
  psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set name="$1" --set password="$2" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
}

database mlflow "$MLFLOW_DB_PASSWORD"
database prefect "$PREFECT_DB_PASSWORD"
