//! Records appended one by one, each durable before it is announced: after a crash of the machine, every
//! announced record must be on the disk.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::disk::{ALIGNMENT, Buffer, Disk};
use crate::pattern;

/// Size of a record in bytes.
const RECORD: usize = 4 * ALIGNMENT;
/// Generation of the pattern in records.
const GENERATION: u32 = 0x6a72;

#[derive(clap::Args)]
pub(crate) struct AppendOptions {
    /// Disk to overwrite
    disk: PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct CheckOptions {
    /// Disk or image file that was written
    disk: PathBuf,
    /// Records that must be there
    records: u64,
}

/// Prints `@durable N` when the first N records are durable, until the disk is full.
pub(crate) fn append(options: &AppendOptions) -> Result<()> {
    let disk = Disk::open(&options.disk, true)?;
    let mut buffer = Buffer::new(RECORD);
    for number in 0..disk.size() / RECORD as u64 {
        let offset = number * RECORD as u64;
        pattern::fill(&mut buffer, offset, GENERATION);
        disk.write(&buffer, offset)?;
        disk.flush()?;
        println!("@durable {}", number + 1);
    }
    Ok(())
}

/// Compares the first records with what [`append`] wrote.
pub(crate) fn check(options: &CheckOptions) -> Result<()> {
    let disk = Disk::open_cached(&options.disk, false)?;
    ensure!(options.records > 0, "no record was announced: nothing to check");
    let mut buffer = Buffer::new(RECORD);
    for number in 0..options.records {
        let offset = number * RECORD as u64;
        disk.read(&mut buffer, offset)?;
        let wrong = pattern::mismatch(&buffer, offset, GENERATION);
        ensure!(wrong.is_none(), "record {number} was announced as durable but is not on the disk");
    }
    println!("{} records are there", options.records);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_record_that_is_missing_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut record = vec![0; RECORD];
        for number in 0..3 {
            let offset = number * RECORD as u64;
            pattern::fill(&mut record, offset, GENERATION);
            file.as_file().write_all_at(&record, offset).unwrap();
        }
        let check_first = |records| check(&CheckOptions { disk: file.path().to_path_buf(), records });
        check_first(3).unwrap();
        file.as_file().write_all_at(&[0; 512], 2 * RECORD as u64 + 1024).unwrap();
        check_first(2).unwrap();
        let error = check_first(3).unwrap_err().to_string();
        assert!(error.contains("record 2"), "{error}");
        assert!(check_first(4).is_err());
        assert!(check_first(0).is_err());
    }
}
