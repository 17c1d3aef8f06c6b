//! Where the sensor's value comes from.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use gvmm_plugin_api::tracing;

/// Thousandths of a degree without a file.
const ROOM: i32 = 25_000;
/// Bytes of the file that are looked at.
const MAX_TEXT: u64 = 32;

/// A temperature of the host.
#[derive(Debug)]
pub(crate) struct Temperature {
    file: Option<PathBuf>,
}

impl Temperature {
    /// The temperature in a file, which has to have one now.
    pub(crate) fn new(file: Option<PathBuf>) -> Result<Self, String> {
        if let Some(path) = &file {
            // Opening a pipe would wait for somebody who writes to it.
            if !std::fs::metadata(path).map_err(|e| error(path, &e))?.is_file() {
                return Err(error(path, &"it is not a regular file"));
            }
            read(path)?;
        }
        Ok(Self { file })
    }

    /// Thousandths of a degree Celsius; `None` when the file does not tell.
    pub(crate) fn now(&self) -> Option<i32> {
        let Some(path) = &self.file else { return Some(ROOM) };
        read(path).inspect_err(|error| tracing::warn!("{error}")).ok()
    }
}

fn read(path: &Path) -> Result<i32, String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|e| error(path, &e))?;
    file.take(MAX_TEXT).read_to_string(&mut text).map_err(|e| error(path, &e))?;
    let text = text.trim();
    text.parse().map_err(|_| error(path, &format!("'{text}' is no whole number of thousandths of a degree")))
}

fn error(path: &Path, cause: &dyn std::fmt::Display) -> String {
    format!("temperature file {}: {cause}", path.display())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

    use super::*;

    #[test]
    fn the_file_is_read_anew_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("temp");
        std::fs::write(&path, "41500\n").unwrap();
        let temperature = Temperature::new(Some(path.clone())).unwrap();
        assert_eq!(temperature.now(), Some(41_500));
        std::fs::write(&path, "-3000\n").unwrap();
        assert_eq!(temperature.now(), Some(-3_000));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(temperature.now(), None);
    }

    #[test]
    fn what_is_no_temperature_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("temp");
        let refused = || Temperature::new(Some(path.clone())).unwrap_err();
        assert!(refused().contains("No such file"), "{}", refused());
        std::fs::write(&path, "warm").unwrap();
        let cause = "'warm' is no whole number of thousandths of a degree";
        assert_eq!(refused(), format!("temperature file {}: {cause}", path.display()));
        let error = Temperature::new(Some(folder.path().to_owned())).unwrap_err();
        assert!(error.ends_with("it is not a regular file"), "{error}");
    }
}
