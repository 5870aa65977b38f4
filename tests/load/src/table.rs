//! Rows: how often per second, how long, and at what cost to the engine.

use std::time::Duration;

use serde_json::{Value, json};

#[derive(Debug, Default)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) per_second: Option<f64>,
    /// p50, p99 and p99.9.
    pub(crate) latencies_us: Option<[f64; 3]>,
    pub(crate) cpu_us: Option<f64>,
    /// Anything else, with its unit.
    pub(crate) other: String,
    pub(crate) target: String,
}

#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Row>);

impl Row {
    pub(crate) fn new(name: &str, mut latencies: Vec<Duration>, wall: Duration, cpu: Duration) -> Self {
        latencies.sort_unstable();
        let count = latencies.len();
        let at = |part: f64| {
            let index = (count as f64 * part) as usize;
            latencies.get(index.min(count.saturating_sub(1))).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
        };
        Self { latencies_us: Some([at(0.5), at(0.99), at(0.999)]), ..Self::counted(name, count as u64, wall, cpu) }
    }

    /// Of operations that nobody waited for one by one.
    pub(crate) fn counted(name: &str, count: u64, wall: Duration, cpu: Duration) -> Self {
        Self {
            name: name.to_owned(),
            per_second: Some(count as f64 / wall.as_secs_f64()),
            cpu_us: Some(cpu.as_secs_f64() * 1e6 / count as f64),
            ..Self::default()
        }
    }
}

impl Table {
    pub(crate) fn push(&mut self, row: Row) {
        eprintln!("{}", line(&row));
        self.0.push(row);
    }

    pub(crate) fn text(&self) -> String {
        let head = "| what | per second | p50 µs | p99 | p99.9 | engine CPU µs each | | target |\n|---|---:|---:|---:|---:|---:|---|---|\n";
        head.to_owned() + &self.0.iter().map(|row| line(row) + "\n").collect::<String>()
    }

    pub(crate) fn json(&self) -> String {
        let rows: Vec<Value> = self
            .0
            .iter()
            .map(|row| {
                json!({
                    "name": row.name, "per_second": row.per_second, "cpu_us": row.cpu_us, "other": row.other,
                    "latencies_us": row.latencies_us.map(|[p50, p99, p999]| json!({"p50": p50, "p99": p99, "p99.9": p999})),
                    "target": row.target,
                })
            })
            .collect();
        serde_json::to_string_pretty(&rows).unwrap_or_default()
    }
}

fn line(row: &Row) -> String {
    let number = |value: Option<f64>| value.map_or(String::new(), digits);
    let [p50, p99, p999] = row.latencies_us.map_or([None; 3], |all| all.map(Some)).map(number);
    format!(
        "| {} | {} | {p50} | {p99} | {p999} | {} | {} | {} |",
        row.name,
        number(row.per_second),
        number(row.cpu_us),
        row.other,
        row.target
    )
}

/// Three digits that mean something.
fn digits(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
