//! Carries a plugin's `tracing` events to the host.
//!
//! A plugin is a library with its own copy of `tracing`, so a subscriber of the host never sees its events. On load
//! the plugin installs the subscriber of this module, which passes each event to the device in whose scope the thread
//! is: calls from the host and threads started by [`Services::spawn`](crate::services::Services::spawn) are in one.

use std::cell::Cell;
use std::fmt::Write;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// Takes log lines: level (1 error to 5 trace), target, text.
pub(crate) type Sink = Arc<dyn Fn(u8, &str, &str) + Send + Sync>;

/// One sink a device of this plugin, `None` once the device is gone: places are not used again, for a thread may still
/// be in the scope.
static SINKS: RwLock<Vec<Option<Sink>>> = RwLock::new(Vec::new());
/// Most detailed level that the host wants.
static MAX_LEVEL: AtomicU8 = AtomicU8::new(0);
/// Longest text of one event in bytes.
const MAX_TEXT: usize = 8192;

thread_local! {
    static CURRENT: Cell<Scope> = const { Cell::new(Scope::NONE) };
}

/// The device that a thread works for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scope(u32);

impl Scope {
    /// No device.
    pub(crate) const NONE: Self = Self(u32::MAX);

    /// A scope whose lines go to the sink.
    pub(crate) fn register(sink: Sink) -> Self {
        let mut sinks = SINKS.write().unwrap_or_else(PoisonError::into_inner);
        sinks.push(Some(sink));
        Self(u32::try_from(sinks.len() - 1).unwrap_or(u32::MAX))
    }

    /// Takes the sink away: the device is gone.
    pub(crate) fn unregister(self) {
        let mut sinks = SINKS.write().unwrap_or_else(PoisonError::into_inner);
        let sink = sinks.get_mut(self.0 as usize).and_then(Option::take);
        drop(sinks);
        // The sink's own end may log.
        drop(sink);
    }

    /// Enters the scope on this thread until the guard is dropped.
    pub(crate) fn enter(self) -> Entered {
        Entered(CURRENT.replace(self))
    }
}

/// Guard of an entered scope.
pub(crate) struct Entered(Scope);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// Installs the subscriber and a panic hook in this copy of the libraries. Called once when a plugin is loaded.
pub(crate) fn install(max_level: u8) {
    MAX_LEVEL.store(max_level, Ordering::Relaxed);
    if tracing::subscriber::set_global_default(Forward).is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            tracing::error!("panicked at {place}: {}", crate::panic_text(panic.payload()));
        }));
    }
}

struct Forward;

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        number(*metadata.level()) <= MAX_LEVEL.load(Ordering::Relaxed)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let sinks = SINKS.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(Some(sink)) = sinks.get(CURRENT.get().0 as usize) {
            let mut text = Text(String::new());
            event.record(&mut text);
            sink(number(*event.metadata().level()), event.metadata().target(), &text.0);
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// 1 for errors to 5 for traces.
pub(crate) fn number(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// An event as text: the message, then its fields as `name=value`.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if self.0.len() > MAX_TEXT {
            return;
        }
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
