//! `millstream table recopy`: asks for a live table to be copied again.

use clap::Args;

use super::Exit;
use super::output::print_line;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::event::TableName;
use crate::preflight::recopy::{Verdict, ask};
use crate::preflight::tables;

/// For `--help`.
pub const EXAMPLE: &str = "\
Examples:
  millstream table recopy reports public.orders
  millstream status                  (how far it is)";

/// Arguments of `millstream table recopy`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The replica.
    #[arg(value_name = "REPLICA")]
    replica: String,
    /// The table, with its schema: public.orders. Of a partitioned table its partitions, one by one.
    #[arg(value_name = "TABLE", value_parser = |text: &str| tables::one(text).map_err(|error| error.message().to_owned()))]
    table: TableName,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: Config, arguments: Arguments) -> Result<Exit> {
    let Arguments { replica: name, table, json } = arguments;
    let Some(replica) = config.replicas.get(&name) else {
        return Err(Error::new(ErrorKind::Config, format!("the configuration has no replica '{name}'")));
    };
    let verdict = ask(replica, &table).await?;
    let (asked, refused, note) = match verdict {
        Verdict::Asked { note } => (true, None, note),
        Verdict::Refused(why) => (false, Some(why), None),
    };
    if json {
        let answer = serde_json::json!({
            "replica": name, "table": table.to_string(), "asked": asked, "refused": refused, "note": note,
        });
        print_line(&answer.to_string())?;
    } else if let Some(why) = refused {
        print_line(&format!("Refused: {why}"))?;
    } else {
        print_line(&format!("{table} is copied again on replica {name}; `millstream status` shows how far it is"))?;
        if let Some(note) = note {
            print_line(&format!("Note: {note}"))?;
        }
    }
    Ok(if asked { Exit::Good } else { Exit::Bad })
}
