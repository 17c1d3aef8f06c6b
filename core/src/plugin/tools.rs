//! `gvmm plugin`: hands over to the program `gvmm-plugin`, so that no VM carries the tools of plugin authors.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use gvmm_plugin_api::host::program;

/// Name of the program.
const PROGRAM: &str = "gvmm-plugin";

/// Becomes the program, which is beside this one or on `PATH`. Returns only if that fails: with the reason.
pub fn become_tools(arguments: &[OsString]) -> String {
    let program = beside().unwrap_or_else(|| PathBuf::from(PROGRAM));
    let error = Command::new(&program).args(arguments).exec();
    format!(
        "cannot run {}: {error}; `gvmm plugin` needs the program {PROGRAM} beside gvmm or on PATH",
        program.display()
    )
}

fn beside() -> Option<PathBuf> {
    let program = program::path()?.with_file_name(PROGRAM);
    program.is_file().then_some(program)
}
