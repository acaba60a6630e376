//! Draining a backlog: made while everybody is stopped, then each competitor is started and timed until the last change is visible.

use std::time::Instant;

use crate::Wish;
use crate::pair::{Arena, Competitor, server};
use crate::report::{Report, Row};

const SCHEMA: &str = "\
CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL, note text, changed timestamptz NOT NULL DEFAULT now());
CREATE TABLE event (id bigint PRIMARY KEY, kind int NOT NULL, body text NOT NULL);";

/// 30 % insert, 65 % update, 5 % delete of keys drawn at random, each a transaction of its own. Every call makes exactly one change.
const LOAD: &str = "\
CREATE SEQUENCE account_id START 50001;
CREATE PROCEDURE one_row(changes int) LANGUAGE plpgsql AS $$
DECLARE dice float; key bigint;
BEGIN
  FOR i IN 1..changes LOOP
    dice := random();
    IF dice < 0.30 THEN
      INSERT INTO account VALUES (nextval('account_id'), i, md5(i::text));
    ELSE
      key := 1 + floor(random() * 50000);
      IF dice < 0.95 THEN
        UPDATE account SET balance = balance + 1, changed = clock_timestamp() WHERE id = key;
        IF NOT FOUND THEN INSERT INTO account VALUES (key, i, md5(i::text)); END IF;
      ELSE
        DELETE FROM account WHERE id = key;
        IF NOT FOUND THEN INSERT INTO account VALUES (key, i, md5(i::text)); END IF;
      END IF;
    END IF;
    COMMIT;
  END LOOP;
END $$;
CREATE PROCEDURE thousand_rows(changes int) LANGUAGE plpgsql AS $$
DECLARE first bigint;
BEGIN
  SELECT coalesce(max(id), 0) INTO first FROM event;
  FOR i IN 1..changes / 1000 LOOP
    INSERT INTO event SELECT first + i * 1000 + g, g, md5(g::text) FROM generate_series(1, 1000) g;
    COMMIT;
  END LOOP;
END $$;";

/// Measures both workloads.
pub async fn run(wish: &Wish, report: &mut Report) {
    let (source, replica) = (server().await, server().await);
    let arena = Arena::new(&source, &replica, SCHEMA).await;
    arena.source.execute(LOAD).await;
    let fill = "INSERT INTO account SELECT g, 0, md5(g::text), now() FROM generate_series(1, 50000) g";
    arena.source.execute(fill).await;
    let mut marker = 0;
    // The first round warms everything up, and is not counted.
    let cases = [
        ("one-row transactions", "one_row", wish.drain_changes),
        ("1,000-row transactions", "thousand_rows", 5 * wish.drain_changes),
    ];
    for (name, call, changes) in cases {
        let mut rows = Competitor::ALL.map(|who| Row::new(&format!("drain, {name}"), who.label(), "changes/s"));
        for round in 0..=wish.rounds {
            marker += 1;
            let mut session = arena.source.connection().await;
            // One by one: several in one message would be one transaction, and the procedure commits.
            for statement in ["SET synchronous_commit = off".to_owned(), format!("CALL {call}({changes})")] {
                sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut session).await.expect("the load");
            }
            arena.source.execute(&format!("INSERT INTO marker VALUES ({marker})")).await;
            arena.settle().await;
            for index in order(round) {
                let who = Competitor::ALL[index];
                let begin = Instant::now();
                let daemon = arena.start(who).await;
                let took = arena.visible(who, marker, begin).await;
                arena.stop(who, daemon).await;
                let rate = f64::from(changes) / took.as_secs_f64();
                eprintln!("  {name}, round {round}: {:>38} {rate:>9.0} changes/s", who.label());
                if round > 0 {
                    rows[index].add(rate);
                }
            }
            arena.verify(&["account", "event", "marker"]).await;
        }
        report.extend(rows, true);
    }
}

/// Forwards and backwards in turn, so that drift of the machine hits all alike.
fn order(round: usize) -> Vec<usize> {
    let forward = 0..Competitor::ALL.len();
    if round.is_multiple_of(2) { forward.collect() } else { forward.rev().collect() }
}
