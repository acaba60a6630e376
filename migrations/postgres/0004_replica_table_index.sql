-- Before each chunk, and each key that is read again, the ledger is asked whose a table of the replica is: with many tables that read all of them.

CREATE INDEX copied_table_replica_table ON millstream.copied_table (replica_table);
