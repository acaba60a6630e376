//! Random schedules of writers, zombies, trims and restarted readers against an oracle that sees everything from the start.

mod schedule;
mod stream;
mod writer;

use proptest::prelude::*;

use self::schedule::{Step, World, steps};

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn readers_agree_and_nothing_valid_is_lost(seed: u64, steps in steps()) {
        let mut world = World::new(seed);
        for step in &steps {
            world.step(step);
        }
        world.finish();
    }
}

#[test]
fn a_schedule_reaches_the_interesting_states() {
    let mut seen = schedule::Seen::default();
    for seed in 0..300_u64 {
        let mut world = World::new(seed);
        for at in 0..120_u64 {
            world.step(&Step::at(seed.wrapping_mul(7919).wrapping_add(at * 104_729)));
        }
        world.finish();
        seen.add(&world.seen);
    }
    assert!(seen.lost_races > 20 && seen.voided_records > 200 && seen.voided_parts > 20, "{seen:?}");
    assert!(seen.bases > 100 && seen.trims > 20 && seen.resumes > 500 && seen.large > 20, "{seen:?}");
}
