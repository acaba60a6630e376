//! What a SQLSTATE means to Millstream: the one table for every PostgreSQL connection, ours and sqlx's.
//!
//! Source of the codes: PostgreSQL documentation, appendix "PostgreSQL Error Codes". What is not in the table is
//! [`ErrorKind::Unexpected`], which halts: never retried for ever, never skipped. Some codes mean several things (55000, 42704: a slot or a publication); a caller that knows
//! better what it asked for uses [`crate::Error::with_kind`].

use crate::error::ErrorKind;
use crate::halt::HaltCode;

/// Which side of the pair a connection is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The captured database.
    Source,
    /// The database that is applied to.
    Replica,
}

impl Side {
    /// The halt for a refused connection, password or right.
    #[must_use]
    pub fn denied(self) -> ErrorKind {
        ErrorKind::Halt(match self {
            Self::Source => HaltCode::SourceDenied,
            Self::Replica => HaltCode::ReplicaDenied,
        })
    }

    /// `source` or `replica`, for messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Replica => "replica",
        }
    }
}

/// Maps a SQLSTATE to a kind: exact codes first, then their class (the first two characters).
#[must_use]
pub fn kind_of_sqlstate(sqlstate: &str, side: Side) -> ErrorKind {
    by_code(sqlstate, side).or_else(|| by_class(sqlstate.get(..2)?, side)).unwrap_or(ErrorKind::Unexpected)
}

/// Classes whose messages and details may quote values: data exceptions, constraint violations, whatever a trigger or function says.
#[must_use]
pub fn quotes_values(sqlstate: &str) -> bool {
    matches!(sqlstate.get(..2), Some("22" | "23" | "44" | "P0" | "09" | "27" | "38" | "39"))
}

fn by_code(sqlstate: &str, side: Side) -> Option<ErrorKind> {
    Some(match sqlstate {
        // protocol_violation: poolers say "no such database" or "unsupported startup parameter" with it; retrying does not mend that.
        "08P01" => ErrorKind::Unexpected,
        // admin_shutdown, crash_shutdown, database_dropped, idle_session_timeout; idle_in_transaction_session_timeout; statement_completion_unknown
        "57P01" | "57P02" | "57P04" | "57P05" | "25P03" | "40003" => ErrorKind::Connection,
        // cannot_connect_now, query_canceled, too_many_connections, out_of_memory
        "57P03" | "57014" | "53300" | "53200" => ErrorKind::Busy,
        // serialization_failure, deadlock_detected, lock_not_available, snapshot_too_old (before and since 17)
        "40001" | "40P01" | "55P03" | "72000" => ErrorKind::Busy,
        // disk_full
        "53100" => ErrorKind::NoSpace,
        // configuration_limit_exceeded: all slots or walsenders in use | temp_file_limit
        "53400" => match side {
            Side::Source => ErrorKind::Halt(HaltCode::SourceMisconfigured),
            Side::Replica => ErrorKind::NoSpace,
        },
        // object_in_use: another walsender holds the slot | a table in use by this or another session
        "55006" => match side {
            Side::Source => ErrorKind::Held,
            Side::Replica => ErrorKind::Busy,
        },
        // object_not_in_prerequisite_state: wal_level, a lost slot | a replica table that publishes updates itself
        "55000" => either(side, HaltCode::SourceMisconfigured, HaltCode::ReplicaConstraint),
        // insufficient_privilege
        "42501" => side.denied(),
        // read_only_sql_transaction: a standby or default_transaction_read_only | a failover in progress: soon promoted
        "25006" => match side {
            Side::Source => ErrorKind::Halt(HaltCode::SourceMisconfigured),
            Side::Replica => ErrorKind::Connection,
        },
        // feature_not_supported | TRUNCATE of a table that the replica's own foreign keys refer to
        "0A000" => only(Side::Replica, side, HaltCode::ReplicaConstraint),
        // invalid_catalog_name: the database of the configuration does not exist
        "3D000" => ErrorKind::Config,
        // syntax_error: ours
        "42601" => ErrorKind::Unexpected,
        // transaction_integrity_constraint_violation
        "40002" => only(Side::Replica, side, HaltCode::ReplicaConstraint),
        _ => return None,
    })
}

fn by_class(class: &str, side: Side) -> Option<ErrorKind> {
    Some(match class {
        // connection exception
        "08" => ErrorKind::Connection,
        // invalid authorization specification
        "28" => side.denied(),
        // transaction rollback, insufficient resources: the exact codes are above
        "40" | "53" => ErrorKind::Busy,
        // access rule violation (undefined tables, columns, types, publications, slots), invalid schema name
        "42" | "3F" => either(side, HaltCode::SourceMisconfigured, HaltCode::SchemaMismatch),
        // data exception (the replica's type takes less than the source's), integrity constraint violation (of a unique one too: only the
        // writer knows whether it was the key, and so another's row), WITH CHECK OPTION violation, program limit exceeded; triggered action
        // exception, triggered data change, external routine (38, 39), PL/pgSQL (RAISE): a trigger that the source does not have
        "22" | "23" | "44" | "54" | "09" | "27" | "38" | "39" | "P0" => only(Side::Replica, side, HaltCode::ReplicaConstraint),
        _ => return None,
    })
}

fn either(side: Side, source: HaltCode, replica: HaltCode) -> ErrorKind {
    ErrorKind::Halt(match side {
        Side::Source => source,
        Side::Replica => replica,
    })
}

/// A code that has a meaning on one side and is unexpected on the other.
fn only(meant: Side, side: Side, code: HaltCode) -> ErrorKind {
    if meant == side { ErrorKind::Halt(code) } else { ErrorKind::Unexpected }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_classes() {
        for (code, source, replica) in [
            ("08006", ErrorKind::Connection, ErrorKind::Connection),
            ("57P01", ErrorKind::Connection, ErrorKind::Connection),
            ("57P03", ErrorKind::Busy, ErrorKind::Busy),
            ("53300", ErrorKind::Busy, ErrorKind::Busy),
            ("40001", ErrorKind::Busy, ErrorKind::Busy),
            ("40P01", ErrorKind::Busy, ErrorKind::Busy),
            ("55P03", ErrorKind::Busy, ErrorKind::Busy),
            ("53100", ErrorKind::NoSpace, ErrorKind::NoSpace),
            ("28P01", ErrorKind::Halt(HaltCode::SourceDenied), ErrorKind::Halt(HaltCode::ReplicaDenied)),
            ("42501", ErrorKind::Halt(HaltCode::SourceDenied), ErrorKind::Halt(HaltCode::ReplicaDenied)),
            ("23514", ErrorKind::Unexpected, ErrorKind::Halt(HaltCode::ReplicaConstraint)),
            ("23505", ErrorKind::Unexpected, ErrorKind::Halt(HaltCode::ReplicaConstraint)),
            ("22001", ErrorKind::Unexpected, ErrorKind::Halt(HaltCode::ReplicaConstraint)),
            ("38001", ErrorKind::Unexpected, ErrorKind::Halt(HaltCode::ReplicaConstraint)),
            ("0A000", ErrorKind::Unexpected, ErrorKind::Halt(HaltCode::ReplicaConstraint)),
            // The applier's own idle_in_transaction_session_timeout: no reason to halt.
            ("25P03", ErrorKind::Connection, ErrorKind::Connection),
            ("57P04", ErrorKind::Connection, ErrorKind::Connection),
            ("25006", ErrorKind::Halt(HaltCode::SourceMisconfigured), ErrorKind::Connection),
            ("40000", ErrorKind::Busy, ErrorKind::Busy),
            ("53200", ErrorKind::Busy, ErrorKind::Busy),
            ("53400", ErrorKind::Halt(HaltCode::SourceMisconfigured), ErrorKind::NoSpace),
            ("42P01", ErrorKind::Halt(HaltCode::SourceMisconfigured), ErrorKind::Halt(HaltCode::SchemaMismatch)),
            ("55006", ErrorKind::Held, ErrorKind::Busy),
            ("XX000", ErrorKind::Unexpected, ErrorKind::Unexpected),
            ("", ErrorKind::Unexpected, ErrorKind::Unexpected),
            ("é", ErrorKind::Unexpected, ErrorKind::Unexpected),
        ] {
            assert_eq!(kind_of_sqlstate(code, Side::Source), source, "{code} on the source");
            assert_eq!(kind_of_sqlstate(code, Side::Replica), replica, "{code} on the replica");
        }
    }
}
