//! The command line, the configuration's complaints, status, HTTP and the log as people read it.

mod commands;
mod config;
mod deploy;
mod given_up;
mod http;
mod pair;
mod sequences;
mod status;
mod supply;
mod systemd;
mod tail;
mod watch;

/// A configuration whose servers do not exist. `{folder}` and `{http}` are the site's.
const NOWHERE: &str = r#"[source.shop]
url = "postgres://millstream@127.0.0.1:1/shop"
tables = ["public.*"]

[queue]
url = "embedded:{folder}/queue"

[replica.reports]
source = "shop"
url = "postgres://millstream@127.0.0.1:2/shop"

[http]
listen = "{http}"
"#;
