//! Tells the simulator's own calls from the program's: the former go straight to libc.

use std::cell::Cell;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// While this lives, the calling thread is inside the simulator.
pub(crate) struct Inside(());

impl Inside {
    pub(crate) fn enter() -> Inside {
        DEPTH.with(|depth| depth.set(depth.get() + 1));
        Inside(())
    }

    /// Whether the calling thread already is.
    pub(crate) fn is() -> bool {
        // A thread that is being torn down has no thread-locals any more; its calls are the runtime's own.
        DEPTH.try_with(|depth| depth.get() > 0).unwrap_or(true)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.with(|depth| depth.set(depth.get() - 1));
    }
}
