//! Rows of measurements, their reference in the same run, and the target beside them.

use std::time::Duration;

use serde_json::{Value, json};

/// What several rounds took, in milliseconds unless it says otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Samples {
    values: Vec<f64>,
    unit: &'static str,
}

impl Samples {
    pub(crate) fn from_ms(values: impl IntoIterator<Item = f64>) -> Self {
        Self { values: values.into_iter().collect(), unit: "ms" }
    }

    pub(crate) fn from_mib(values: impl IntoIterator<Item = f64>) -> Self {
        Self { values: values.into_iter().collect(), unit: "MiB" }
    }

    pub(crate) fn from_durations(durations: impl IntoIterator<Item = Duration>) -> Self {
        Self::from_ms(durations.into_iter().map(|duration| duration.as_secs_f64() * 1000.0))
    }

    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn range(&self) -> (f64, f64) {
        self.values.iter().fold((f64::INFINITY, 0.0), |(low, high), value| (low.min(*value), high.max(*value)))
    }
}

#[derive(Default)]
pub(crate) struct Report(Vec<Row>);

struct Row {
    name: String,
    samples: Samples,
    /// What it is compared with, in the same run, and that one's median.
    reference: Option<(String, f64)>,
    target: String,
}

impl Report {
    pub(crate) fn row(&mut self, name: &str, samples: Samples, reference: Option<(&str, &Samples)>, target: &str) {
        let reference = reference.map(|(name, samples)| (name.to_owned(), samples.median()));
        eprintln!("{name}: {:.1} {}", samples.median(), samples.unit);
        self.0.push(Row { name: name.to_owned(), samples, reference, target: target.to_owned() });
    }

    pub(crate) fn table(&self) -> String {
        let mut table =
            String::from("| what | median | min–max | against | ratio | target |\n|---|---:|---:|---|---:|---|\n");
        for row in &self.0 {
            let (low, high) = row.samples.range();
            let median = row.samples.median();
            let (against, ratio) = match &row.reference {
                Some((name, reference)) => {
                    (format!("{name} ({})", digits(*reference)), format!("{:.3}", median / reference))
                }
                None => (String::new(), String::new()),
            };
            let [median, low, high] = [median, low, high].map(digits);
            table.push_str(&format!(
                "| {} | {median} {} | {low}–{high} | {against} | {ratio} | {} |\n",
                row.name, row.samples.unit, row.target
            ));
        }
        table
    }

    pub(crate) fn json(&self) -> String {
        let rows: Vec<Value> = self
            .0
            .iter()
            .map(|row| {
                let (low, high) = row.samples.range();
                json!({
                    "name": row.name, "unit": row.samples.unit, "median": row.samples.median(), "min": low, "max": high,
                    "rounds": row.samples.values.len(), "target": row.target,
                    "reference": row.reference.as_ref().map(|(name, median)| json!({ "name": name, "median": median })),
                })
            })
            .collect();
        serde_json::to_string_pretty(&rows).unwrap_or_default()
    }
}

/// Three digits that mean something.
fn digits(ms: f64) -> String {
    match ms {
        ms if ms >= 100.0 => format!("{ms:.0}"),
        ms if ms >= 10.0 => format!("{ms:.1}"),
        ms if ms >= 1.0 => format!("{ms:.2}"),
        ms => format!("{ms:.3}"),
    }
}
