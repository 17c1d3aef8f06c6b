//! The trace: one JSON line per call and event, appended to a file as it happens.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::errno::Errno;

/// What one call was given and did, filled in while it is handled.
pub(crate) struct Call {
    name: String,
    fields: Map<String, Value>,
}

impl Call {
    pub(crate) fn new(name: impl Into<String>) -> Call {
        Call { name: name.into(), fields: Map::new() }
    }

    pub(crate) fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.fields.insert(field.to_owned(), value.into());
    }

    /// Addresses and flags read better in hexadecimal.
    pub(crate) fn hex(&mut self, field: &str, value: u64) {
        self.set(field, format!("{value:#x}"));
    }
}

struct Trace {
    file: Option<File>,
    begin: Instant,
    next: AtomicU64,
}

fn open(path: &Path) -> Option<File> {
    match OpenOptions::new().create(true).append(true).open(path) {
        Ok(file) => Some(file),
        Err(error) => {
            eprintln!("gunyah-sim: cannot write the trace {}: {error}", path.display());
            None
        }
    }
}

fn trace() -> &'static Trace {
    static TRACE: OnceLock<Trace> = OnceLock::new();
    TRACE.get_or_init(|| Trace {
        file: Config::get().and_then(|config| config.trace.as_deref()).and_then(open),
        begin: Instant::now(),
        next: AtomicU64::new(0),
    })
}

/// Writes a line: what the event is, where and when it happened, and its own fields.
fn line(kind: &str, name: &str, fields: Map<String, Value>) {
    let trace = trace();
    let Some(mut file) = trace.file.as_ref() else { return };
    let mut record = Map::new();
    record.insert("n".to_owned(), trace.next.fetch_add(1, Ordering::Relaxed).into());
    record.insert("us".to_owned(), (trace.begin.elapsed().as_micros() as u64).into());
    record.insert("pid".to_owned(), std::process::id().into());
    record.insert(kind.to_owned(), name.into());
    record.extend(fields);
    // One write per line keeps the lines of several threads and processes whole.
    let _ = file.write_all(format!("{}\n", Value::Object(record)).as_bytes());
}

/// Traces a call that has come back.
pub(crate) fn call(call: Call, result: Result<i64, Errno>) {
    let Call { name, mut fields } = call;
    match result {
        Ok(value) => fields.insert("ret".to_owned(), value.into()),
        Err(errno) => fields.insert("errno".to_owned(), errno.name().into()),
    };
    line("call", &name, fields);
}

/// Traces something that is no call.
pub(crate) fn event(name: &str, fields: Value) {
    let fields = match fields {
        Value::Object(fields) => fields,
        Value::Null => Map::new(),
        other => Map::from_iter([("value".to_owned(), other)]),
    };
    line("event", name, fields);
}

/// A line of the simulated kernel log: to the trace, and to standard error if asked for.
pub(crate) fn kernel_log(text: &str) {
    event("log", json!({ "text": text }));
    if Config::get().is_some_and(|config| config.log) {
        eprintln!("gunyah-sim: {text}");
    }
}
