//! A timeline's history file, as a source sends it: what is understood says the same when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millstream::capture::postgres::slot::parse_lineage;
use millstream::event::Lsn;

fuzz_target!(|content: &str| {
    let Ok(lineage) = parse_lineage(content) else { return };
    let again: String = lineage.iter().map(|(timeline, switch)| format!("{timeline}\t{}\tno reason\n", Lsn(*switch))).collect();
    assert_eq!(parse_lineage(&again).expect("its own text"), lineage);
});
