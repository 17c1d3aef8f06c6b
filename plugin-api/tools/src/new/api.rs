//! Where a new crate finds `gvmm-plugin-api`.

use std::env;
use std::path::{Path, PathBuf};

use gvmm_plugin_api::host::program;

/// Version that a new crate asks for.
pub(super) const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"));

/// The folder of the crate: the one given, or that of the sources around this program or around the working folder.
pub(super) fn find(given: Option<&Path>) -> Result<PathBuf, String> {
    if let Some(given) = given {
        let absolute = given.canonicalize().ok().filter(|folder| is_api(folder));
        return absolute.ok_or_else(|| format!("--api {}: gvmm-plugin-api is not there", given.display()));
    }
    let begins = [program::path(), env::current_dir().ok()];
    let around = |begin: &PathBuf| begin.ancestors().map(|f| f.join("plugin-api")).find(|f| is_api(f));
    begins.iter().flatten().find_map(around).ok_or_else(|| {
        "gvmm-plugin-api is not found: name its folder in gvmm's sources with --api PATH".to_owned()
    })
}

fn is_api(folder: &Path) -> bool {
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml"));
    manifest.is_ok_and(|text| text.lines().any(|line| line.trim() == "name = \"gvmm-plugin-api\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_the_crate_is_refused_by_name() {
        let error = find(Some(Path::new("/nowhere"))).unwrap_err();
        assert_eq!(error, "--api /nowhere: gvmm-plugin-api is not there");
        assert!(find(None).unwrap().ends_with("plugin-api"));
    }
}
