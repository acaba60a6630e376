-- The replica of docker-compose.yml: role and rights.
CREATE ROLE millstream LOGIN PASSWORD 'replica-playground';
GRANT ALL ON DATABASE shop TO millstream;
GRANT ALL ON SCHEMA public TO millstream;
GRANT SET ON PARAMETER session_replication_role TO millstream;
