//! gvmm's own log, on standard error.

use std::io;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::console::terminal;

/// Starts the log. The filter is a level or a list of `target=level`. Returns the most detailed level that plugins
/// need to produce (1 error to 5 trace, 0 none).
pub(crate) fn start(filter: &str) -> Result<u8, String> {
    let (filter, level) = parse(filter)?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(|| terminal::Stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .with_target(false)
        .compact();
    let log = tracing_subscriber::registry().with(filter).with(lines);
    log.try_init().map_err(|e| format!("the log cannot be started: {e}"))?;
    Ok(level)
}

/// The filter, and the most detailed level that it lets through.
fn parse(text: &str) -> Result<(Targets, u8), String> {
    let filter: Targets = text
        .parse()
        .map_err(|e| format!("--log {text}: {e}; use error, warn, info, debug, trace or TARGET=LEVEL,..."))?;
    let levels = filter.iter().map(|(_, level)| level).chain(filter.default_level());
    let level = match levels.max() {
        None | Some(LevelFilter::OFF) => 0,
        Some(LevelFilter::ERROR) => 1,
        Some(LevelFilter::WARN) => 2,
        Some(LevelFilter::INFO) => 3,
        Some(LevelFilter::DEBUG) => 4,
        Some(LevelFilter::TRACE) => 5,
    };
    Ok((filter, level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_asked_for_no_more_than_the_filter_lets_through() {
        let level = |text| parse(text).unwrap().1;
        assert_eq!(["off", "warn", "info,gvmm::bus=trace", "gvmm=debug"].map(level), [0, 2, 5, 4]);
    }

    #[test]
    fn a_broken_filter_is_answered_with_what_would_do() {
        let error = parse("gvmm=loud").unwrap_err();
        assert!(error.starts_with("--log gvmm=loud: ") && error.ends_with("or TARGET=LEVEL,..."), "{error}");
    }
}
