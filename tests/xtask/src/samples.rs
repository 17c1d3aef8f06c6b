//! What measurements print, gathered: medians and ratios.

use std::collections::BTreeMap;

/// What was measured: by name, then by program.
#[derive(Default)]
pub(crate) struct Samples(BTreeMap<String, BTreeMap<String, Vec<f64>>>);

impl Samples {
    /// Takes a line `@bench PROGRAM NAME VALUE`; others are no samples.
    pub(crate) fn take(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["@bench", vmm, name, value] = words[..]
            && let Ok(value) = value.parse()
        {
            self.0.entry(name.to_owned()).or_default().entry(vmm.to_owned()).or_default().push(value);
        }
    }

    /// Medians, and the ratio of the first program's to each other one's, as a Markdown table.
    pub(crate) fn table(&self, programs: &[String]) -> String {
        let Some((ours, others)) = programs.split_first() else { return String::new() };
        let ratios = others.iter().map(|other| format!("{ours} / {other}"));
        let head: Vec<_> =
            ["median".to_owned()].into_iter().chain(programs.iter().cloned()).chain(ratios).collect();
        let mut table = format!("\n| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
        for (name, by_program) in &self.0 {
            let median_of = |program: &str| by_program.get(program).and_then(|values| median(values));
            if programs.iter().all(|program| median_of(program).is_none()) {
                continue;
            }
            let medians = programs
                .iter()
                .map(|program| median_of(program).map_or("-".to_owned(), |value| value.to_string()));
            let ratios = others.iter().map(|other| match (median_of(ours), median_of(other)) {
                (Some(ours), Some(theirs)) if theirs != 0.0 => format!("{:.2}", ours / theirs),
                _ => "-".to_owned(),
            });
            let row: Vec<_> = [name.replace('_', " ")].into_iter().chain(medians).chain(ratios).collect();
            table += &format!("| {} |\n", row.join(" | "));
        }
        table
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted.get(middle).copied()
    } else {
        Some((sorted.get(middle.checked_sub(1)?)? + sorted.get(middle)?) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn the_table_has_medians_and_ratios() {
        let mut samples = Samples::default();
        for line in
            ["@bench gvmm exits 100", "noise", "@bench qemu exits 200", "@bench qemu faults 7", "@bench x"]
        {
            samples.take(line);
        }
        let table = samples.table(&["gvmm".to_owned(), "qemu".to_owned()]);
        assert!(table.contains("| median | gvmm | qemu | gvmm / qemu |"), "{table}");
        assert!(table.contains("| exits | 100 | 200 | 0.50 |"), "{table}");
        assert!(table.contains("| faults | - | 7 | - |"), "{table}");
    }
}
