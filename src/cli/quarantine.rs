//! `millstream quarantine`: the one way past a transaction that a replica refuses.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Exit;
use super::output::{print, print_line};
use crate::apply::first_copy::Schemas;
use crate::apply::quarantine::{Account, KeptState, KeptTable, Quarantine};
use crate::config::{Config, ReplicaConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Cell, Change, Position, Row, SchemaId};
use crate::replica::postgres::quarantine::command::{self, Added, Done};

/// For `--help`.
pub const EXAMPLE: &str = "\
Examples:
  millstream quarantine add reports 0/1A2B3C8     keeps the transaction that the halt names
  millstream quarantine list reports
  millstream quarantine show reports 0/1A2B3C8 --values
  millstream quarantine retry reports             applies what is kept
  millstream quarantine clear reports 0/1A2B3C8   drops what is kept; the account stays

Later changes of its rows halt in their turn, and the replica is not whole, until it is applied
or its tables are copied again (millstream table recopy). Exits with 1 when it is refused.";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Order {
    /// Keeps the transaction that the replica is halted at: whole, in the replica's schema millstream, not applied. It is tried once more first.
    #[command(after_help = EXAMPLE)]
    Add(One),
    /// Lists what is kept, and every account of what was.
    #[command(after_help = EXAMPLE)]
    List(All),
    /// Shows one account, with all its keys.
    #[command(after_help = EXAMPLE)]
    Show(Show),
    /// Applies everything that is kept, oldest first, in one transaction of the replica; or nothing of it.
    #[command(after_help = EXAMPLE)]
    Retry(All),
    /// Drops what is kept of a transaction. Its keys halt nobody any more; its account stays, and the replica is not whole until its tables are copied again.
    #[command(after_help = EXAMPLE)]
    Clear(One),
}

/// A replica.
#[derive(Args, Debug)]
pub struct All {
    /// The replica.
    #[arg(value_name = "REPLICA")]
    replica: String,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// A transaction of a replica.
#[derive(Args, Debug)]
pub struct One {
    /// The replica.
    #[arg(value_name = "REPLICA")]
    replica: String,
    /// The transaction, as the halt prints it: source transaction 771 at 0/1A2B3C8.
    #[arg(value_name = "POSITION", value_parser = position)]
    position: Position,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// A transaction of a replica, to be shown.
#[derive(Args, Debug)]
pub struct Show {
    #[command(flatten)]
    one: One,
    /// The changes too, with every value.
    #[arg(long)]
    values: bool,
}

fn position(text: &str) -> std::result::Result<Position, String> {
    text.parse().map_err(|error: Error| error.message().to_owned())
}

pub(super) async fn run(config: Config, order: Order) -> Result<Exit> {
    match order {
        Order::Add(one) => add(replica(&config, &one.replica)?, &one).await,
        Order::List(all) => list(replica(&config, &all.replica)?, &all).await,
        Order::Show(Show { one, values }) => show(replica(&config, &one.replica)?, &one, values).await,
        Order::Retry(all) => {
            let done = command::retry(replica(&config, &all.replica)?).await?;
            ended(&all.replica, "applied", &done, all.json)
        }
        Order::Clear(one) => {
            let done = command::clear(replica(&config, &one.replica)?, one.position).await?;
            ended(&one.replica, "cleared", &done, one.json)
        }
    }
}

fn replica<'c>(config: &'c Config, name: &str) -> Result<&'c ReplicaConfig> {
    let unknown = || Error::new(ErrorKind::Config, format!("the configuration has no replica '{name}'"));
    config.replicas.get(name).ok_or_else(unknown)
}

async fn add(replica: &ReplicaConfig, one: &One) -> Result<Exit> {
    let (name, position) = (&one.replica, one.position);
    let added = command::add(replica, position).await?;
    let (state, words) = match &added {
        Added::Kept(account) => {
            let tables: Vec<_> = account.tables.iter().map(|table| format!("  {}\n", table_line(table))).collect();
            (
                "kept",
                format!(
                    "kept in quarantine: {}\n{}replica {name} goes on behind it, and is not whole\n",
                    line(account),
                    tables.concat()
                ),
            )
        }
        Added::Applied => ("applied", format!("replica {name} took the transaction at {position} after all: nothing was kept\n")),
        Added::Ordered => (
            "ordered",
            format!(
                "ordered: a daemon that applies to replica {name} tries the transaction at {position} once more, and keeps it when it is refused again. None has yet: \
                 is one running, and the replica not paused? `millstream quarantine list {name}` shows it once it is kept\n"
            ),
        ),
        Added::Refused(why) => ("refused", format!("Refused: {why}\n")),
    };
    if one.json {
        let refused = if let Added::Refused(why) = &added { Some(why) } else { None };
        let account = if let Added::Kept(account) = &added { Some(account) } else { None };
        let position = position.to_string();
        print_line(
            &json!({ "replica": name, "position": position, "state": state, "refused": refused, "account": account }).to_string(),
        )?;
    } else {
        print(&words)?;
    }
    Ok(if matches!(added, Added::Refused(_)) { Exit::Bad } else { Exit::Good })
}

async fn list(replica: &ReplicaConfig, all: &All) -> Result<Exit> {
    let quarantine = command::list(replica).await?;
    if all.json {
        print_line(&json!({ "replica": all.replica, "quarantine": quarantine }).to_string())?;
        return Ok(Exit::Good);
    }
    print(&listed(&all.replica, &quarantine))?;
    Ok(Exit::Good)
}

fn listed(replica: &str, quarantine: &Quarantine) -> String {
    if quarantine.transactions.is_empty() {
        return format!("replica {replica} has nothing in quarantine, and never had\n");
    }
    let mut text = String::new();
    for account in &quarantine.transactions {
        text.push_str(&format!("{}\n", line(account)));
        account.tables.iter().for_each(|table| text.push_str(&format!("  {}\n", table_line(table))));
    }
    if quarantine.is_missing_something() {
        let since = quarantine.whole_through.as_deref().unwrap_or("its first transaction");
        text.push_str(&format!("replica {replica} is not whole since {since}\n"));
    }
    text
}

/// One account in a line.
pub(super) fn line(account: &Account) -> String {
    let Account { position, xid, changes, code, state, kept_at, ended_at, .. } = account;
    let became = match (state, ended_at) {
        (KeptState::Kept, _) | (_, None) => format!("kept since {kept_at}"),
        (state, Some(ended_at)) => format!("{} at {ended_at}, kept at {kept_at}", state.as_str()),
    };
    let changes = if *changes == 1 { "1 change".to_owned() } else { format!("{changes} changes") };
    format!("{position} (source transaction {xid}, {changes}, {code}): {became}")
}

/// One of its tables in a line: its keys, never other values.
pub(super) fn table_line(table: &KeptTable) -> String {
    let mut text = match &table.whole {
        Some(why) => format!("{}: every row counts ({why})", table.table),
        None => {
            let keys: Vec<_> = table
                .keys
                .iter()
                .map(|key| format!("({})", key.iter().map(|value| shown(value)).collect::<Vec<_>>().join(", ")))
                .collect();
            let more = table.key_count.saturating_sub(table.keys.len() as u64);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("{}: ({}) = {}{more}", table.table, table.key_columns.join(", "), keys.join(", "))
        }
    };
    if let Some(at) = &table.cured_at {
        text.push_str(&format!("; copied again at {at}"));
    }
    if let Some(at) = &table.dropped_at {
        text.push_str(&format!("; gone since {at}"));
    }
    text
}

/// Longest key value shown in a line.
const SHOWN: usize = 100;

fn shown(value: &str) -> String {
    let cut: String = value.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if value.chars().count() > SHOWN { format!("{cut}…") } else { cut }
}

async fn show(replica: &ReplicaConfig, one: &One, values: bool) -> Result<Exit> {
    let name = &one.replica;
    let Some(mut shown) = command::show(replica, one.position).await? else {
        let message = format!("replica {name} has no transaction at {} in quarantine", one.position);
        print_line(&if one.json { json!({ "replica": name, "account": null }).to_string() } else { message })?;
        return Ok(Exit::Bad);
    };
    if one.json {
        let mut all: Vec<Value> = Vec::new();
        let mut each = |changes: &[Change], schemas: &Schemas| {
            all.extend(changes.iter().map(|change| described(change, schemas)));
            Ok(())
        };
        if values {
            shown.changes(&mut each).await?;
        }
        let changes = values.then_some(all);
        print_line(&json!({ "replica": name, "account": shown.account, "changes": changes }).to_string())?;
        return Ok(Exit::Good);
    }
    let account = &shown.account;
    print_line(&line(account))?;
    print_line(&format!("  why: {}", account.reason))?;
    for table in &account.tables {
        print_line(&format!("  {}", table_line(table)))?;
    }
    if values && account.state != KeptState::Kept {
        print_line("  its values are not kept any more")?;
    } else if values {
        let mut number = 0_u64;
        // Printed as they are read: a transaction may be larger than memory.
        let mut each = |changes: &[Change], schemas: &Schemas| {
            changes.iter().try_for_each(|change| {
                number += 1;
                print_line(&format!("  {number}: {}", described(change, schemas)))
            })
        };
        shown.changes(&mut each).await?;
    }
    Ok(Exit::Good)
}

fn described(change: &Change, schemas: &Schemas) -> Value {
    let name = |id: &SchemaId| schemas.get(id).map(|schema| schema.table.to_string());
    let row = |id: &SchemaId, row: &Row| {
        let columns =
            schemas.get(id).map(|schema| schema.columns.iter().map(|column| column.name.clone()).collect()).unwrap_or_default();
        values(columns, row)
    };
    match change {
        Change::Insert { table, new } => json!({ "op": "insert", "table": name(table), "new": row(table, new) }),
        Change::Update { table, old, new } => {
            let old = old.as_ref().map(|old| row(table, old.row()));
            json!({ "op": "update", "table": name(table), "old": old, "new": row(table, new) })
        }
        Change::Delete { table, old } => json!({ "op": "delete", "table": name(table), "old": row(table, old.row()) }),
        Change::Truncate { tables, .. } => json!({ "op": "truncate", "tables": tables.iter().map(name).collect::<Vec<_>>() }),
        Change::Message { prefix, .. } => json!({ "op": "message", "prefix": prefix }),
        Change::Schema { .. } => json!({ "op": "schema" }),
    }
}

/// Cells by column; those that the source did not send are left out.
fn values(columns: Vec<String>, row: &Row) -> Value {
    let cells = columns.into_iter().zip(row).filter_map(|(column, cell)| {
        let value = match cell {
            Cell::Null => Value::Null,
            Cell::Unchanged => return None,
            Cell::Value(value) => Value::String(String::from_utf8_lossy(value).into_owned()),
        };
        Some((column, value))
    });
    Value::Object(cells.collect())
}

fn ended(replica: &str, what: &str, done: &Done, as_json: bool) -> Result<Exit> {
    let (transactions, refused) = match done {
        Done::Done(transactions) => (transactions.as_slice(), None),
        Done::Refused(why) => (&[][..], Some(why)),
    };
    if as_json {
        let transactions: Vec<_> =
            transactions.iter().map(|(position, changes)| json!({ "position": position, "changes": changes })).collect();
        print_line(&json!({ "replica": replica, (what): transactions, "refused": refused }).to_string())?;
    } else if let Some(why) = refused {
        print_line(&format!("Refused: {why}"))?;
    } else if transactions.is_empty() {
        print_line(&format!("nothing is kept in quarantine on replica {replica}"))?;
    } else {
        for (position, changes) in transactions {
            print_line(&format!(
                "{what} on replica {replica}: the transaction at {position}, {changes} change{}",
                if *changes == 1 { "" } else { "s" }
            ))?;
        }
    }
    Ok(if refused.is_some() { Exit::Bad } else { Exit::Good })
}
