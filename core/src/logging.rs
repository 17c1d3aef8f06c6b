//! gvmm's own log, on standard error.

use std::io;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use crate::console::terminal;

/// Starts the log. The filter is a level or a list of `target=level`. Returns the most detailed level that plugins
/// need to produce (1 error to 5 trace, 0 none).
pub(crate) fn start(filter: &str) -> Result<u8, String> {
    let filter = EnvFilter::builder().parse(filter).map_err(|e| {
        format!("--log {filter}: {e}; use error, warn, info, debug, trace or TARGET=LEVEL,...")
    })?;
    let level = match filter.max_level_hint() {
        Some(LevelFilter::OFF) => 0,
        Some(LevelFilter::ERROR) => 1,
        Some(LevelFilter::WARN) => 2,
        Some(LevelFilter::INFO) => 3,
        Some(LevelFilter::DEBUG) => 4,
        Some(LevelFilter::TRACE) | None => 5,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| terminal::Stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .with_target(false)
        .compact();
    subscriber.try_init().map_err(|e| format!("the log cannot be started: {e}"))?;
    Ok(level)
}
