//! `millstream explain`: what a code means and what to do, without a daemon or a configuration.

use clap::Args;

use super::Exit;
use super::output::print;
use crate::error::Result;
use crate::halt::HaltCode;

/// For `--help`.
pub const EXAMPLE: &str = "Example:\n  millstream explain slot_missing";

/// Arguments of `millstream explain`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// A code, as log, status and metrics show it.
    #[arg(value_parser = |text: &str| text.parse::<HaltCode>().map_err(|error| error.message().to_owned()))]
    code: Option<HaltCode>,
    /// One JSON object (or, without a code, a list of them).
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit> {
    let text = match (arguments.code, arguments.json) {
        (Some(code), true) => format!("{}\n", object(code)),
        (None, true) => format!("{}\n", serde_json::Value::from_iter(HaltCode::ALL.iter().map(|code| object(*code)))),
        (Some(code), false) => article(code),
        (None, false) => list(),
    };
    print(&text)?;
    Ok(Exit::Good)
}

fn object(code: HaltCode) -> serde_json::Value {
    let explanation = code.explain();
    serde_json::json!({
        "code": code.as_str(),
        "mendable": code.mendable(),
        "meaning": explanation.meaning,
        "remedy": explanation.remedy,
    })
}

fn article(code: HaltCode) -> String {
    let explanation = code.explain();
    let after = if code.mendable() {
        "Once the cause is mended, work goes on by itself: it is tried again every 10 seconds and at restart."
    } else {
        "Changes are lost to what halted: it stays halted until a new copy."
    };
    let paragraphs = [explanation.meaning, explanation.remedy, after].map(|text| wrap(text, 78, "  "));
    format!("{code}\n\n{}\n\nWhat to do\n\n{}\n\n{}\n", paragraphs[0], paragraphs[1], paragraphs[2])
}

fn list() -> String {
    let width = HaltCode::ALL.iter().map(|code| code.as_str().len()).max().unwrap_or(0);
    let mut out = String::new();
    for code in HaltCode::ALL {
        let first = code.explain().meaning.split_inclusive(". ").next().unwrap_or_default().trim_end();
        let text = wrap(first, 80, &" ".repeat(width + 2));
        out.push_str(&format!("{:width$}  {}\n", code.as_str(), text.trim_start()));
    }
    out.push_str("\n`millstream explain CODE` says what to do.\n");
    out
}

/// Breaks a text into lines of at most `width` characters, each indented.
pub(super) fn wrap(text: &str, width: usize, indent: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("{indent}{word}")),
        }
    }
    lines.join("\n")
}
