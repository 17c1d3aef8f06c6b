//! Standard output, whose reader may go away.

use std::io::Write;

use serde::Serialize;

/// Writes text. A reader that went away has read enough.
pub(crate) fn text(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Writes a value as JSON.
///
/// # Errors
///
/// Why there is no JSON form of it.
pub(crate) fn json(value: &impl Serialize) -> Result<(), String> {
    let json = serde_json::to_string_pretty(value).map_err(|e| format!("cannot write JSON: {e}"))?;
    text(&(json + "\n"));
    Ok(())
}
