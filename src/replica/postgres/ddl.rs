//! The source's schema changes, made on the replica, inside the replica transaction of the source's transaction (I3, I4).
//!
//! What is there already is not made twice: somebody may have made the change by hand, and may do so to mend a halt. Locks are waited for
//! only [`LOCKS`] long, because whoever comes behind a waiting ALTER TABLE waits as well; the transaction is then tried again.
//!
//! Defaults are a convenience on a replica, whose rows come with every value: one that needs a sequence or function which is not
//! there is left out, with a line in the log. Everything else that the replica refuses halts.

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Executor, Row};

use super::errors::{SHORT_WAIT, within};
use super::ledger::{self, CopyState, identity_of};
use super::members::{Now, another, of_another};
use super::quarantine::ended::forget_gone;
use super::quarantine::kept_of;
use super::replica::PostgresReplica;
use super::write::PATIENT_WAIT;
use crate::apply::ddl::{
    Action, ColumnFacts, EnumFacts, Facts, Kind, LabelChange, ParentFacts, SchemaChange, diff, label_changes,
};
use crate::capture::begin::publication_name;
use crate::error::{Error, ErrorKind, Result};
use crate::event::TableName;
use crate::halt::HaltCode;
use crate::postgres::sql::{quote_ident, quote_literal, quote_table};
use crate::replica::Replica;

/// For the statements of a schema change: a new key or NOT NULL reads the whole table.
const LOCKS: &str = "SET LOCAL lock_timeout = '3s'; SET LOCAL statement_timeout = '30min'";
/// As for every other statement of an applier.
const USUAL: &str = "SET LOCAL lock_timeout = '10s'; SET LOCAL statement_timeout = '120s'";
/// ALTER TABLE is refused while checks that were put off are pending.
const CHECKED: &str = "SET CONSTRAINTS ALL IMMEDIATE";
const PUT_OFF: &str = "SET CONSTRAINTS ALL DEFERRED";

/// As `millstream.facts` on the source, of a table by name. `root`: what a partition's columns belong to.
const FACTS: &str = "SELECT pg_catalog.jsonb_build_object('schema', n.nspname, 'name', c.relname, 'columns', \
        (SELECT coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('num', a.attnum, 'name', a.attname, \
            'declared', pg_catalog.format_type(a.atttypid, a.atttypmod), 'not_null', a.attnotnull, \
            'identity', a.attidentity, 'generated', a.attgenerated) ORDER BY a.attnum), '[]'::jsonb) \
         FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
        'key', (SELECT pg_catalog.jsonb_build_object('name', k.conname, 'deferrable', k.condeferrable, 'columns', \
            (SELECT pg_catalog.jsonb_agg(a.attname ORDER BY o.n) FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY o (num, n) \
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = o.num)) \
            FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'p'), \
        'parent', (SELECT pg_catalog.jsonb_build_object('schema', pn.nspname, 'name', p.relname, 'bound', pg_catalog.pg_get_expr(c.relpartbound, c.oid)) \
            FROM pg_catalog.pg_inherits h JOIN pg_catalog.pg_class p ON p.oid = h.inhparent \
            JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace WHERE h.inhrelid = c.oid AND c.relispartition)), \
        (SELECT rn.nspname::text FROM pg_catalog.pg_class r JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace \
         WHERE r.oid = pg_catalog.pg_partition_root(c.oid)), \
        (SELECT r.relname::text FROM pg_catalog.pg_class r WHERE r.oid = pg_catalog.pg_partition_root(c.oid)), c.relkind = 'p' \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')";

/// A table as the replica has it.
struct There {
    facts: Facts,
    /// What a partition's columns belong to; the table itself otherwise.
    root: TableName,
    partitioned: bool,
}

impl PostgresReplica {
    /// Makes a schema change in the open replica transaction. `enforced`: constraints may be pending in it.
    pub(super) async fn carry(&mut self, content: &[u8], enforced: bool) -> Result<()> {
        let change = SchemaChange::parse(content)?;
        self.read_members().await?;
        if self.is_added() && !self.concerns_added(&change)? {
            return Ok(());
        }
        if enforced {
            self.short(CHECKED).await?;
        }
        self.short(LOCKS).await?;
        match change.kind {
            Kind::Unknown => {
                let note = change.note.as_deref().unwrap_or("no reason given");
                return Err(Error::halt(HaltCode::SchemaChangeUnknown, format!("{}: {note}", change.tag)));
            }
            Kind::Enum => self.carry_labels(&change.labels()?).await?,
            Kind::Rewritten | Kind::Filled => self.refuse_rows(&change)?,
            Kind::Dropped => self.carry_drop(&change).await?,
            Kind::Table => self.carry_table(&change).await?,
        }
        self.short(USUAL).await?;
        if enforced {
            self.short(PUT_OFF).await?;
        }
        self.forget_tables();
        Ok(())
    }

    /// A table of this replica that is complete. The definition of one that is still being copied is the copy's own affair.
    fn is_live(&self, facts: &Facts) -> Result<bool> {
        let state = self.state_of(facts)?;
        if state.is_some_and(|state| state != CopyState::Live) {
            tracing::info!(table = %facts.table(), "a schema change of a table that is not live is left to its copy");
        }
        Ok(state == Some(CopyState::Live))
    }

    /// How far a table is, by its number: without the triggers its name may have gone to another.
    fn state_of(&self, facts: &Facts) -> Result<Option<CopyState>> {
        let table = facts.table();
        match self.members.get(&table) {
            Some(member) if member.source_oid.is_some_and(|oid| facts.oid.is_some_and(|theirs| theirs != oid)) => {
                if member.state == CopyState::Live && !member.leaves { Err(another(&table)) } else { Ok(None) }
            }
            member => Ok(member.map(|member| member.state)),
        }
    }

    /// What does not name a table of these is the other row's to carry, at its own place.
    fn concerns_added(&self, change: &SchemaChange) -> Result<bool> {
        let mine = |facts: Option<Facts>| {
            facts.is_some_and(|f| self.members.get(&f.table()).is_some_and(|m| m.state != CopyState::Apart))
        };
        Ok(!matches!(change.kind, Kind::Unknown | Kind::Enum) && (mine(change.before()?) || mine(change.after()?)))
    }

    fn is_ours(&self, facts: &Facts) -> bool {
        facts.published.contains(&publication_name(&self.source))
    }

    fn refuse_rows(&self, change: &SchemaChange) -> Result<()> {
        let Some(facts) = change.after()? else { return Ok(()) };
        if !self.is_ours(&facts) || (change.kind == Kind::Rewritten && !self.is_live(&facts)?) {
            return Ok(());
        }
        let message = format!("{} wrote rows of table {} that the log does not have", change.tag, facts.table());
        Err(Error::halt(HaltCode::TableRewritten, message))
    }

    async fn carry_drop(&mut self, change: &SchemaChange) -> Result<()> {
        let Some(before) = change.before()? else { return Ok(()) };
        let table = before.table();
        match self.state_of(&before)? {
            None => return Ok(()),
            Some(CopyState::Apart) => self.take_back(&table).await?,
            Some(_) => {}
        }
        self.is_called(&table).await?;
        // Dropped by hand already: what has its name is none of ours.
        if self.whereabouts(&table).await? != Now::Gone {
            self.ddl(&format!("DROP TABLE IF EXISTS {}", quote_table(&table))).await?;
        }
        tracing::info!(%table, "dropped, as on the source");
        let forget = sqlx::query(
            "DELETE FROM millstream.copied_table WHERE replica IN ($1, $4) AND table_schema = $2 AND table_name = $3",
        )
        .bind(&self.name)
        .bind(&table.schema)
        .bind(&table.name)
        .bind(ledger::added(&self.name));
        within(SHORT_WAIT, "forgetting a table", forget.execute(&mut self.connection)).await?;
        forget_gone(&mut self.connection, &self.name).await
    }

    /// A table under the other row, which comes here later, or never: what it copies is gone. Nothing is under way there until this transaction ends.
    async fn take_back(&mut self, table: &TableName) -> Result<()> {
        let added = ledger::added(&self.name);
        let hold = sqlx::query("SELECT FROM millstream.replica WHERE name = $1 FOR UPDATE").bind(&added);
        within(SHORT_WAIT, "holding the added tables' row", hold.execute(&mut self.connection)).await?;
        let shadow = self.members.get(table).and_then(|member| member.shadow.clone());
        if let Some(shadow) = shadow {
            self.ddl(&format!("DROP TABLE IF EXISTS {}", quote_table(&shadow))).await?;
        }
        Ok(())
    }

    async fn carry_table(&mut self, change: &SchemaChange) -> Result<()> {
        let Some(after) = change.after()? else { return Ok(()) };
        let Some(before) = change.before()? else {
            if self.is_ours(&after) && !self.members.contains_key(&after.table()) {
                self.create(&after).await?;
            }
            return Ok(());
        };
        // The copy goes into a table of its own, and what stands here is to fit its rows when it is complete. Its name is the copy's affair.
        let again = self.is_copied_again(&before)?;
        if !again && !self.is_live(&before)? {
            return Ok(());
        }
        let mut table = before.table();
        if self.whereabouts(&table).await? != Now::Named(after.table()) {
            self.is_called(&table).await?;
        }
        let kept = match before.oid {
            Some(number) => kept_of(&mut self.connection, &self.name, number).await?,
            None => Vec::new(),
        };
        for action in diff(&before, &after) {
            if !(again && matches!(action, Action::Rename(_))) {
                let done = self.act(&mut table, &action).await;
                done.map_err(|error| self.lacks_rows(error, &before.table(), &kept))?;
            }
        }
        Ok(())
    }

    /// A schema change that is refused may be so for what is kept.
    fn lacks_rows(&self, error: Error, table: &TableName, kept: &[String]) -> Error {
        if kept.is_empty() || error.kind() != ErrorKind::Halt(HaltCode::SchemaChangeRefused) {
            return error;
        }
        error.context(format!(
            "what earlier transactions did to {table} is in quarantine ({}), and may be what is missing: `millstream quarantine retry {}` first",
            kept.join(", "),
            ledger::whole(&self.name)
        ))
    }

    /// A table that readers see while the replica's other row copies it again.
    fn is_copied_again(&self, facts: &Facts) -> Result<bool> {
        let apart = self.state_of(facts)? == Some(CopyState::Apart);
        Ok(apart && self.members.get(&facts.table()).is_some_and(|member| member.shadow.is_some()))
    }

    async fn act(&mut self, table: &mut TableName, action: &Action) -> Result<()> {
        if let Action::Rename(to) = action {
            self.rename(table, to).await?;
            table.clone_from(to);
            return Ok(());
        }
        if let Action::RenameParent(from, to) = action {
            // Each of its leaves says it.
            return if self.there(from).await?.is_some() { self.move_table(from, to).await } else { Ok(()) };
        }
        let Some(there) = self.there(table).await? else {
            let message = format!("table {table} is not on the replica; create it there as the source has it");
            return Err(Error::halt(HaltCode::SchemaMismatch, message));
        };
        let has = async |this: &mut Self, parent: &ParentFacts| {
            let above = this.there(&parent.table()).await?;
            Ok::<_, Error>(above.is_some_and(|above| above.partitioned))
        };
        // A replica may have one plain table where the source has partitions, or the other way round.
        let done = match action {
            Action::Detach(_) => there.facts.parent.is_none(),
            Action::Attach(parent) => there.facts.parent.is_some() || !has(self, parent).await?,
            _ => fits(action, &there.facts),
        };
        if done {
            tracing::info!(%table, ?action, "a schema change that the replica has already");
            return Ok(());
        }
        if let Action::AddColumn(column) | Action::Retype(column) = action {
            self.enums(std::slice::from_ref(column)).await?;
        }
        for statement in statements(action, table, &there) {
            match action {
                Action::Default(..) => self.default(&statement).await?,
                _ => self.ddl(&statement).await?,
            }
            tracing::info!(%table, "schema changed, as on the source");
        }
        // The constant that old rows show is not always what new ones get.
        if let Action::AddColumn(column) = action
            && column.generated.is_empty()
            && (column.missing.is_some() || column.default.is_some())
        {
            let default = Action::Default(column.name.clone(), column.default.clone());
            for statement in statements(&default, table, &there) {
                self.default(&statement).await?;
            }
        }
        Ok(())
    }

    async fn rename(&mut self, from: &TableName, to: &TableName) -> Result<()> {
        let done = match self.whereabouts(from).await? {
            Now::Named(there) => there == *to,
            Now::Gone | Now::Unknown => self.there(from).await?.is_none() && self.there(to).await?.is_some(),
        };
        if !done {
            self.move_table(from, to).await?;
        }
        tracing::info!(table = %from, %to, "renamed, as on the source");
        self.rename_in_ledger(from, to).await
    }

    async fn move_table(&mut self, from: &TableName, to: &TableName) -> Result<()> {
        if from.schema != to.schema {
            self.schema(&to.schema).await?;
            self.ddl(&format!("ALTER TABLE {} SET SCHEMA {}", quote_table(from), quote_ident(&to.schema))).await?;
        }
        if from.name != to.name {
            let moved = quote_table(&TableName::new(&to.schema, &from.name));
            self.ddl(&format!("ALTER TABLE {moved} RENAME TO {}", quote_ident(&to.name))).await?;
        }
        Ok(())
    }

    /// The ledger's side of a rename.
    pub(super) async fn rename_in_ledger(&mut self, from: &TableName, to: &TableName) -> Result<()> {
        let query = sqlx::query(
            "UPDATE millstream.copied_table SET table_schema = $4, table_name = $5 WHERE replica = $1 AND table_schema = $2 AND table_name = $3",
        );
        let query = query.bind(&self.name).bind(&from.schema).bind(&from.name).bind(&to.schema).bind(&to.name);
        within(SHORT_WAIT, "renaming a table in the ledger", query.execute(&mut self.connection)).await.map(drop)
    }

    /// A table that is empty at the source: live at once.
    async fn create(&mut self, facts: &Facts) -> Result<()> {
        let table = facts.table();
        if self.there(&table).await?.is_some() {
            self.is_empty(&table).await?;
        } else {
            self.schema(&facts.schema).await?;
            self.enums(&facts.columns).await?;
            let parent = match &facts.parent {
                Some(parent) => self.parent_of(facts, parent).await?,
                None => None,
            };
            match parent {
                Some(parent) => {
                    let (above, name) = (above(parent), quote_table(&table));
                    self.ddl(&format!("CREATE TABLE {name} PARTITION OF {above} {}", parent.bound)).await?;
                    let made = self.there(&table).await?;
                    if let (Some(key), Some(There { facts: Facts { key: None, .. }, .. })) = (&facts.key, made) {
                        self.ddl(&format!("ALTER TABLE {name} ADD {}", primary_key(key))).await?;
                    }
                }
                None => self.ddl(&create_table(facts)).await?,
            }
            for column in facts.columns.iter().filter(|column| column.generated.is_empty() && column.default.is_some()) {
                let set = Action::Default(column.name.clone(), column.default.clone());
                let there = There { facts: facts.clone(), root: table.clone(), partitioned: false };
                for statement in statements(&set, &table, &there) {
                    self.default(&statement).await?;
                }
            }
        }
        let taken =
            format!("SELECT EXISTS (SELECT FROM millstream.copied_table WHERE replica_table = {})", identity_of("$1", "$2"));
        let taken = sqlx::query_scalar(AssertSqlSafe(taken)).bind(&table.schema).bind(&table.name);
        if within(SHORT_WAIT, "looking for a table", taken.fetch_one(&mut self.connection)).await? {
            return Err(of_another(&table));
        }
        tracing::info!(%table, "created, as on the source");
        let sql = format!(
            "INSERT INTO millstream.copied_table (replica, table_schema, table_name, state, copy_group, live_at, source_oid, replica_table) \
             SELECT $1, $2, $3, $4, coalesce((SELECT max(copy_group) + 1 FROM millstream.copied_table WHERE replica = $1), 0), clock_timestamp(), \
                $5, {}",
            identity_of("$2", "$3")
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(&self.name).bind(&table.schema).bind(&table.name);
        let query = query.bind(CopyState::Live.as_str()).bind(facts.oid.map(i64::from));
        within(SHORT_WAIT, "entering a table in the ledger", query.execute(&mut self.connection)).await.map(drop)
    }

    /// What is new at the source has only rows that are in the log.
    async fn is_empty(&mut self, table: &TableName) -> Result<()> {
        let sql = format!("SELECT EXISTS (SELECT FROM ONLY {})", quote_table(table));
        let query = sqlx::query_scalar(AssertSqlSafe(sql));
        if within(SHORT_WAIT, "looking into a table", query.fetch_one(&mut self.connection)).await? {
            let message = format!(
                "the source made table {table}, and the replica has one of the name that holds rows; drop, rename or empty that one \
                 (TRUNCATE {})",
                quote_table(table)
            );
            return Err(Error::halt(HaltCode::ReplicaConflict, message));
        }
        Ok(())
    }

    /// Makes the enums of columns that are not there.
    async fn enums(&mut self, columns: &[ColumnFacts]) -> Result<()> {
        for wanted in columns.iter().filter_map(|column| column.labels.as_ref()) {
            let name = quote_table(&TableName::new(&wanted.schema, &wanted.name));
            let query = sqlx::query_scalar("SELECT pg_catalog.to_regtype($1) IS NOT NULL").bind(&name);
            let there: bool = within(SHORT_WAIT, "looking for a type", query.fetch_one(&mut self.connection)).await?;
            if there {
                continue;
            }
            self.schema(&wanted.schema).await?;
            let labels: Vec<_> = wanted.labels.iter().map(|label| quote_literal(label)).collect();
            self.ddl(&format!("CREATE TYPE {name} AS ENUM ({})", labels.join(", "))).await?;
            tracing::info!(r#type = %name, "created, as on the source");
        }
        Ok(())
    }

    /// What a new partition is made a partition of: its parent, made as well where it is not there; `None` where a plain table stands for the parent.
    async fn parent_of<'f>(&mut self, leaf: &Facts, parent: &'f ParentFacts) -> Result<Option<&'f ParentFacts>> {
        if let Some(there) = self.there(&parent.table()).await? {
            return Ok(Some(parent).filter(|_| there.partitioned));
        }
        // One that is a partition itself is refused by name, as its own parent is not known.
        if let (false, Some(key)) = (parent.leaf, &parent.partition_by) {
            self.schema(&parent.schema).await?;
            let columns: Vec<_> = leaf.columns.iter().map(definition).collect();
            self.ddl(&format!("CREATE TABLE {} ({}) PARTITION BY {key}", above(parent), columns.join(", "))).await?;
            tracing::info!(table = %parent.table(), "created, as on the source");
        }
        Ok(Some(parent))
    }

    async fn schema(&mut self, name: &str) -> Result<()> {
        let query = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)").bind(name);
        let there: bool = within(SHORT_WAIT, "looking for a schema", query.fetch_one(&mut self.connection)).await?;
        if there { Ok(()) } else { self.ddl(&format!("CREATE SCHEMA {}", quote_ident(name))).await }
    }

    async fn carry_labels(&mut self, wanted: &EnumFacts) -> Result<()> {
        let query = sqlx::query_scalar(
            "SELECT e.enumlabel::text FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace \
             JOIN pg_catalog.pg_enum e ON e.enumtypid = t.oid WHERE n.nspname = $1 AND t.typname = $2 ORDER BY e.enumsortorder",
        );
        let query = query.bind(&wanted.schema).bind(&wanted.name);
        let there: Vec<String> = within(SHORT_WAIT, "reading an enum", query.fetch_all(&mut self.connection)).await?;
        let name = quote_table(&TableName::new(&wanted.schema, &wanted.name));
        if there.is_empty() {
            tracing::info!(r#type = %name, "an enum that the replica does not have changed on the source");
            return Ok(());
        }
        let Some(changes) = label_changes(&there, &wanted.labels) else {
            let message = format!(
                "type {name} has the labels {} on the replica, and {} on the source at this place; make them alike there, by ALTER TYPE … RENAME VALUE \
                 and ADD VALUE, or by another type where one is too many: a label cannot be dropped",
                there.join(", "),
                wanted.labels.join(", ")
            );
            return Err(Error::halt(HaltCode::SchemaChangeRefused, message));
        };
        for change in changes {
            let what = match change {
                LabelChange::Rename(from, to) => format!("RENAME VALUE {} TO {}", quote_literal(&from), quote_literal(&to)),
                LabelChange::Add { label, after: Some(after), .. } => {
                    format!("ADD VALUE {} AFTER {}", quote_literal(&label), quote_literal(&after))
                }
                LabelChange::Add { label, before: Some(before), .. } => {
                    format!("ADD VALUE {} BEFORE {}", quote_literal(&label), quote_literal(&before))
                }
                LabelChange::Add { label, .. } => format!("ADD VALUE {}", quote_literal(&label)),
            };
            self.ddl(&format!("ALTER TYPE {name} {what}")).await?;
        }
        Ok(())
    }

    async fn there(&mut self, table: &TableName) -> Result<Option<There>> {
        let query = sqlx::query(FACTS).bind(&table.schema).bind(&table.name);
        let row = within(SHORT_WAIT, "reading the catalog", query.fetch_optional(&mut self.connection)).await?;
        let Some(row) = row else { return Ok(None) };
        let facts: Json<Facts> = row.get(0);
        let root: Option<(String, String)> = row.get::<Option<String>, _>(1).zip(row.get::<Option<String>, _>(2));
        let root = root.map_or_else(|| table.clone(), |(schema, name)| TableName::new(schema, name));
        Ok(Some(There { facts: facts.0, root, partitioned: row.get(3) }))
    }

    async fn ddl(&mut self, statement: &str) -> Result<()> {
        // Parsed as one statement: a default or type that hides a second one is refused (PostgreSQL, "Extended Query").
        let run = sqlx::query(AssertSqlSafe(statement)).persistent(false).execute(&mut self.connection);
        let done = within(PATIENT_WAIT, "changing the schema", run).await.map(drop);
        done.map_err(|error| match error.kind() {
            ErrorKind::Halt(_) | ErrorKind::Unexpected | ErrorKind::Config => {
                error.with_kind(ErrorKind::Halt(HaltCode::SchemaChangeRefused)).context(statement.to_owned())
            }
            _ => error.context(statement.to_owned()),
        })
    }

    /// A default whose function, type or sequence is not there is left out.
    async fn default(&mut self, statement: &str) -> Result<()> {
        self.short("SAVEPOINT a_default").await?;
        match self.ddl(statement).await {
            Ok(()) => self.short("RELEASE SAVEPOINT a_default").await,
            Err(error) if error.kind() == ErrorKind::Halt(HaltCode::SchemaChangeRefused) => {
                tracing::warn!(%error, "a default that the replica cannot have is left out");
                self.short("ROLLBACK TO SAVEPOINT a_default; RELEASE SAVEPOINT a_default").await
            }
            Err(error) => Err(error),
        }
    }

    async fn short(&mut self, sql: &'static str) -> Result<()> {
        within(SHORT_WAIT, sql, self.connection.execute(sql)).await.map(drop)
    }
}

/// True when the replica's table is so already.
fn fits(action: &Action, there: &Facts) -> bool {
    let column = |name: &str| there.columns.iter().find(|column| column.name == name);
    match action {
        Action::Rename(to) => there.table() == *to,
        Action::DropColumn(name) => column(name).is_none(),
        Action::RenameColumn(from, to) => column(from).is_none() && column(to).is_some(),
        Action::Retype(to) => to.collation.is_none() && column(&to.name).is_some_and(|found| found.declared == to.declared),
        Action::DropExpression(name) => column(name).is_some_and(|found| found.generated.is_empty()),
        Action::Default(..) => false,
        Action::NotNull(name, set) => column(name).is_some_and(|found| found.not_null == *set),
        Action::Identity(name, identity) => column(name).is_some_and(|found| found.identity == *identity),
        Action::AddColumn(new) => column(&new.name).is_some_and(|found| found.declared == new.declared),
        Action::DropKey(_) => there.key.is_none(),
        Action::AddKey(key) => there.key.as_ref().is_some_and(|found| found.columns == key.columns),
        Action::Detach(_) | Action::Attach(_) | Action::RenameParent(..) => false,
    }
}

fn statements(action: &Action, table: &TableName, there: &There) -> Vec<String> {
    let own = format!("ALTER TABLE {}", quote_table(table));
    // A partition's columns are its root's.
    let root = format!("ALTER TABLE {}", quote_table(&there.root));
    let statement = match action {
        Action::Rename(_) | Action::RenameParent(..) => return Vec::new(),
        Action::DropColumn(name) => format!("{root} DROP COLUMN {}", quote_ident(name)),
        Action::RenameColumn(from, to) => format!("{root} RENAME COLUMN {} TO {}", quote_ident(from), quote_ident(to)),
        Action::Retype(to) => {
            let (name, declared, collation) = (quote_ident(&to.name), &to.declared, collate(to));
            // What a generated column becomes is its expression's affair.
            let using = if to.generated.is_empty() { format!(" USING {name}::{declared}") } else { String::new() };
            format!("{root} ALTER COLUMN {name} TYPE {declared}{collation}{using}")
        }
        Action::DropExpression(name) => format!("{root} ALTER COLUMN {} DROP EXPRESSION", quote_ident(name)),
        Action::Default(name, Some(default)) => format!("{own} ALTER COLUMN {} SET DEFAULT {default}", quote_ident(name)),
        Action::Default(name, None) => format!("{own} ALTER COLUMN {} DROP DEFAULT", quote_ident(name)),
        Action::NotNull(name, true) => format!("{own} ALTER COLUMN {} SET NOT NULL", quote_ident(name)),
        Action::NotNull(name, false) => format!("{own} ALTER COLUMN {} DROP NOT NULL", quote_ident(name)),
        Action::Identity(name, identity) => {
            let name = quote_ident(name);
            let there = there.facts.columns.iter().any(|column| quote_ident(&column.name) == name && !column.identity.is_empty());
            match (identity.as_str(), there) {
                ("", _) => format!("{root} ALTER COLUMN {name} DROP IDENTITY IF EXISTS"),
                (kind, true) => format!("{root} ALTER COLUMN {name} SET GENERATED {}", generated(kind)),
                (kind, false) => format!("{root} ALTER COLUMN {name} ADD GENERATED {} AS IDENTITY", generated(kind)),
            }
        }
        Action::AddColumn(column) => {
            let missing = column.missing.as_ref().filter(|_| column.generated.is_empty());
            let shown = missing.map(|text| format!(" DEFAULT {}::{}", quote_literal(text), column.declared)).unwrap_or_default();
            format!("{root} ADD COLUMN {}{shown}", definition(column))
        }
        Action::DropKey(name) => {
            // Under the replica's own name.
            let name = there.facts.key.as_ref().map_or(name, |key| &key.name);
            format!("{root} DROP CONSTRAINT {}", quote_ident(name))
        }
        Action::AddKey(key) => format!("{root} ADD {}", primary_key(key)),
        Action::Detach(_) => match &there.facts.parent {
            Some(parent) => format!("ALTER TABLE {} DETACH PARTITION {}", above(parent), quote_table(table)),
            None => return Vec::new(),
        },
        Action::Attach(parent) => {
            format!("ALTER TABLE {} ATTACH PARTITION {} {}", above(parent), quote_table(table), parent.bound)
        }
    };
    vec![statement]
}

fn above(parent: &ParentFacts) -> String {
    quote_table(&parent.table())
}

fn generated(kind: &str) -> &'static str {
    if kind == "a" { "ALWAYS" } else { "BY DEFAULT" }
}

fn collate(column: &ColumnFacts) -> String {
    column.collation.as_ref().map(|collation| format!(" COLLATE {collation}")).unwrap_or_default()
}

fn definition(column: &ColumnFacts) -> String {
    let mut text = format!("{} {}{}", quote_ident(&column.name), column.declared, collate(column));
    if column.not_null {
        text += " NOT NULL";
    }
    if let (false, Some(expression)) = (column.generated.is_empty(), &column.default) {
        let kept = if column.generated == "v" { "VIRTUAL" } else { "STORED" };
        text += &format!(" GENERATED ALWAYS AS ({expression}) {kept}");
    }
    if !column.identity.is_empty() {
        text += &format!(" GENERATED {} AS IDENTITY", generated(&column.identity));
    }
    text
}

fn primary_key(key: &crate::apply::ddl::KeyFacts) -> String {
    let columns: Vec<_> = key.columns.iter().map(|name| quote_ident(name)).collect();
    let deferrable = if key.deferrable { " DEFERRABLE" } else { "" };
    format!("CONSTRAINT {} PRIMARY KEY ({}){deferrable}", quote_ident(&key.name), columns.join(", "))
}

fn create_table(facts: &Facts) -> String {
    let mut parts: Vec<_> = facts.columns.iter().map(definition).collect();
    parts.extend(facts.key.as_ref().map(primary_key));
    format!("CREATE TABLE {} ({})", quote_table(&facts.table()), parts.join(", "))
}
