-- The source of docker-compose.yml: role, rights and a table to play with.
CREATE ROLE millstream LOGIN REPLICATION PASSWORD 'source-playground';
GRANT CREATE ON DATABASE shop TO millstream;
CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer text NOT NULL,
    cents integer NOT NULL CHECK (cents >= 0),
    placed_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE orders OWNER TO millstream;
INSERT INTO orders (customer, cents) SELECT 'customer ' || i % 100, i FROM generate_series(1, 10000) i;
