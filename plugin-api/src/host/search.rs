//! Where plugins and profiles are found.

use std::env;
use std::path::{Path, PathBuf};

use super::program;

/// Variable with folders to search first, separated by colons.
pub const PATH_VARIABLE: &str = "GVMM_PLUGIN_PATH";
/// The folder of the system's package.
const SYSTEM_FOLDER: &str = "/usr/lib/gvmm/plugins";

/// The folders searched, in order: `GVMM_PLUGIN_PATH`, `plugins` beside the binary, the user's, the system's.
pub fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = env::var_os(PATH_VARIABLE).iter().flat_map(env::split_paths).collect();
    if let Some(folder) = program::path().as_deref().and_then(Path::parent) {
        folders.push(folder.join("plugins"));
    }
    if let Some(home) = env::var_os("HOME") {
        folders.push(PathBuf::from(home).join(".local/lib/gvmm/plugins"));
    }
    folders.push(PathBuf::from(SYSTEM_FOLDER));
    folders.retain(|folder| !folder.as_os_str().is_empty());
    folders
}

/// The file of a plugin: a path, if it has a slash or ends in `.so`, or a name to look up.
pub fn find(plugin: &str) -> Result<PathBuf, String> {
    find_in(plugin, &folders())
}

/// As [`find`], in these folders.
fn find_in(plugin: &str, folders: &[PathBuf]) -> Result<PathBuf, String> {
    let given = Path::new(plugin);
    if plugin.contains('/') || (plugin.ends_with(".so") && given.exists()) {
        return match given.exists() {
            true => Ok(given.to_owned()),
            false => Err(format!("plugin {plugin}: no such file")),
        };
    }
    let file = format!("{}.so", plugin.strip_suffix(".so").unwrap_or(plugin));
    if let Some(found) = folders.iter().map(|folder| folder.join(&file)).find(|path| path.exists()) {
        return Ok(found);
    }
    let searched: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    let names = available(folders);
    let hint = match crate::options::nearest(plugin, names.iter().map(String::as_str)) {
        Some(name) => format!("; did you mean '{name}'?"),
        None if names.is_empty() => String::new(),
        None => format!("; there are {}", names.join(", ")),
    };
    Err(format!(
        "plugin {plugin}: {file} is in none of {} (set {PATH_VARIABLE} or give a path){hint}",
        searched.join(", ")
    ))
}

/// Names of the plugins in folders.
fn available(folders: &[PathBuf]) -> Vec<String> {
    let mut names: Vec<String> = folders
        .iter()
        .filter_map(|folder| folder.read_dir().ok())
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".so").map(str::to_owned))
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_the_first_folder_that_has_them() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folders = [a.path().to_owned(), b.path().to_owned()];
        std::fs::write(b.path().join("disk.so"), "").unwrap();
        assert_eq!(find_in("disk", &folders).unwrap(), b.path().join("disk.so"));
        std::fs::write(a.path().join("disk.so"), "").unwrap();
        assert_eq!(find_in("disk.so", &folders).unwrap(), a.path().join("disk.so"));
    }

    #[test]
    fn a_name_that_is_nowhere_is_answered_with_folders_and_the_nearest() {
        let a = tempfile::tempdir().unwrap();
        std::fs::write(a.path().join("virtio_blk.so"), "").unwrap();
        let error = find_in("virtio_blok", &[a.path().to_owned()]).unwrap_err();
        let folder = a.path().display();
        assert_eq!(
            error,
            format!(
                "plugin virtio_blok: virtio_blok.so is in none of {folder} \
                 (set GVMM_PLUGIN_PATH or give a path); did you mean 'virtio_blk'?"
            )
        );
        assert_eq!(find_in("./nothing.so", &[]).unwrap_err(), "plugin ./nothing.so: no such file");
    }
}
