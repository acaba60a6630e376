//! Measures, by hand: `cargo test --release --test it -- --ignored --nocapture apply::speed`.

use std::time::Instant;

use millstream::event::Change;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::rig::{NULL, Rig, SAME, delete, insert, update, v};

const CHANGES: usize = 400_000;
const ROWS: i64 = 50_000;
const PER_RECORD: usize = 2_000;

/// 30 % insert, 65 % update, 5 % delete and insert again; a backlog, drained by a fresh applier.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn draining_one_row_transactions() {
    let mut rig = Rig::new(&format!(
        "CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL, note text, changed timestamptz NOT NULL DEFAULT now());
         INSERT INTO account SELECT g, 0, md5(g::text), now() FROM generate_series(1, {ROWS}) g; ANALYZE account"
    ))
    .await;
    let t = rig.table("account").await;
    let mut random = StdRng::seed_from_u64(1);
    let mut next = ROWS;
    let mut end = rig.log.position();
    let note = "0123456789abcdef0123456789abcdef";
    for _ in 0..CHANGES / PER_RECORD {
        let mut transactions: Vec<Vec<Change>> = Vec::new();
        while transactions.len() < PER_RECORD {
            let dice: f64 = random.random();
            let key = random.random_range(1..=ROWS).to_string();
            let time = v("2026-11-23 04:00:00.123456+00");
            if dice < 0.30 {
                next += 1;
                transactions.push(vec![insert(&t, &[v(&next.to_string()), v("7"), v(note), time])]);
            } else if dice < 0.95 {
                transactions.push(vec![update(&t, &[v(&key), v("12345"), v(note), time])]);
            } else {
                transactions.push(vec![delete(&t, &[v(&key), NULL, NULL, SAME])]);
                transactions.push(vec![insert(&t, &[v(&key), v("7"), v(note), time])]);
            }
        }
        end = rig.log.transactions(&transactions).await;
    }
    let began = Instant::now();
    rig.start();
    rig.applied(end).await;
    let took = began.elapsed().as_secs_f64();
    let status = rig.status.borrow().clone();
    eprintln!(
        "{:.0} changes/s, {} batches, {} replays, {took:.2} s",
        status.changes as f64 / took,
        status.batches,
        status.replays
    );
    rig.stop().await;
}
