//! `millstream sequences`: carries a replica's sequences once, now.

use std::collections::HashMap;

use clap::Args;
use serde_json::{Value as Json, json};

use super::Exit;
use super::output::{complain, print_line};
use crate::apply::sequences::{Fate, Value, carry};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};

/// For `--help`.
pub const EXAMPLE: &str = "\
Examples:
  millstream sequences reports               once nobody writes to the source, before applications write to the replica
  millstream sequences reports --json | jq -r '.[] | select(.outcome == \"left\") | .name'

A sequence that is further on the replica than at the source stays. Needs both servers; a daemon may run beside it or not.
Exits with 1 when one could not be carried.";

/// Arguments of `millstream sequences`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The replica's name.
    #[arg(value_name = "REPLICA")]
    replica: String,
    /// A list with an object for each sequence.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: Config, arguments: Arguments) -> Result<Exit> {
    let name = &arguments.replica;
    let Some((replica, source)) = config.replicas.get(name).and_then(|r| Some((r, config.sources.get(&r.source)?))) else {
        let known = config.replicas.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        complain(&format!("millstream: there is no replica '{name}'; the replicas are: {known}"));
        return Ok(Exit::Usage);
    };
    let fates = carry(source, replica, &mut HashMap::new()).await.map_err(plain)?;
    let lines = fates.iter().map(|(name, fate)| line(&name.to_string(), fate));
    if arguments.json {
        print_line(&Json::from_iter(lines).to_string())?;
    } else {
        for line in lines {
            print_line(&readable(&line))?;
        }
        let set = fates.iter().filter(|(_, fate)| matches!(fate, Fate::Set(_))).count();
        print_line(&format!("{} sequences, {set} set", fates.len()))?;
    }
    let left = fates.iter().any(|(_, fate)| matches!(fate, Fate::Left(_)));
    Ok(if left { Exit::Bad } else { Exit::Good })
}

/// Another cluster is a verdict on the pair, not on the file.
fn plain(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Config => Error::new(ErrorKind::Unexpected, error.to_string()),
        _ => error,
    }
}

fn line(name: &str, fate: &Fate) -> Json {
    let at = |outcome: &str, Value { last, called }: Value| json!({ "name": name, "outcome": outcome, "last_value": last, "is_called": called });
    match fate {
        Fate::Set(value) => at("set", *value),
        Fate::Same(value) => at("same", *value),
        Fate::Ahead(value) => at("ahead", *value),
        Fate::Left(why) => json!({ "name": name, "outcome": "left", "reason": why }),
    }
}

fn readable(line: &Json) -> String {
    let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let (name, value) = (text("name"), &line["last_value"]);
    match text("outcome").as_str() {
        "set" => format!("{name}  set to {value}"),
        "same" => format!("{name}  stands at {value}"),
        "ahead" => format!("{name}  stays at {value}, which is further than the source's"),
        _ => format!("{name}  NOT CARRIED: {}", text("reason")),
    }
}
