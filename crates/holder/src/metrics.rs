//! Numbers about the holder, as Prometheus text.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use daxfs_protocol::message::{ImageInfo, Refusal};

use crate::config::LostLines;
use crate::table::Table;

/// Counters that the event loop writes and the HTTP thread reads.
#[derive(Debug)]
pub struct Metrics {
    started: Instant,
    /// Attaches that were answered with descriptors.
    pub attaches: AtomicU64,
    /// Loads and swaps that were completed.
    pub loads: AtomicU64,
    /// Loads and swaps that failed.
    pub failed_loads: AtomicU64,
    /// Connections now.
    pub connections: AtomicU64,
    /// Whether new clients are answered: not while the first images are loaded, and not at the end.
    pub ready: AtomicBool,
    refusals: [AtomicU64; Refusal::ALL.len()],
    load_nanoseconds: AtomicU64,
    images: Mutex<Vec<ImageInfo>>,
    lost_log_lines: Option<LostLines>,
}

impl Metrics {
    /// All zero, from now on.
    pub fn new(lost_log_lines: Option<LostLines>) -> Self {
        Self {
            started: Instant::now(),
            attaches: AtomicU64::new(0),
            loads: AtomicU64::new(0),
            failed_loads: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            refusals: [const { AtomicU64::new(0) }; Refusal::ALL.len()],
            load_nanoseconds: AtomicU64::new(0),
            images: Mutex::new(Vec::new()),
            lost_log_lines,
        }
    }

    /// Counts a request that was refused.
    pub fn refuse(&self, refusal: Refusal) {
        for (counter, reason) in self.refusals.iter().zip(Refusal::ALL) {
            if reason == refusal {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Counts the time of a load or swap, however it ended.
    pub fn load_ended(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.load_nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Seconds since the start.
    pub fn uptime(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    fn lost_log_lines(&self) -> u64 {
        self.lost_log_lines.as_ref().map_or(0, LostLines::count)
    }

    /// Takes over what is held now.
    pub fn set_images(&self, table: &Table) {
        // A poisoned lock only means that another thread panicked while it read; the list itself is whole.
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        *images = table.iter().map(|held| held.info.clone()).collect();
    }

    /// The text that Prometheus scrapes.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let counters = [
            ("daxfs_attaches_total", "counter", "attaches answered", self.attaches.load(Ordering::Relaxed)),
            ("daxfs_loads_total", "counter", "loads and swaps completed", self.loads.load(Ordering::Relaxed)),
            (
                "daxfs_failed_loads_total",
                "counter",
                "loads and swaps that failed",
                self.failed_loads.load(Ordering::Relaxed),
            ),
            ("daxfs_connections", "gauge", "connections now", self.connections.load(Ordering::Relaxed)),
            (
                "daxfs_log_lines_lost_total",
                "counter",
                "log lines that were not written",
                self.lost_log_lines(),
            ),
            ("daxfs_uptime_seconds", "gauge", "seconds since the start", self.uptime()),
        ];
        for (name, kind, help, value) in counters {
            // Writing to a string does not fail.
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
        self.render_refusals(&mut out);
        self.render_load_seconds(&mut out);
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = write!(
            out,
            "# HELP daxfs_images images held\n# TYPE daxfs_images gauge\ndaxfs_images {}\n",
            images.len()
        );
        for (name, help) in
            [("daxfs_image_bytes", "bytes of an image"), ("daxfs_image_generation", "generation of an image")]
        {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n");
            for image in images.iter() {
                let value = if name == "daxfs_image_bytes" { image.size } else { image.generation };
                // Names hold nothing that needs escaping.
                let _ =
                    writeln!(out, "{name}{{name=\"{}\",kind=\"{}\"}} {value}", image.name, image.kind.name());
            }
        }
        out
    }

    fn render_refusals(&self, out: &mut String) {
        let name = "daxfs_refusals_total";
        let _ = write!(out, "# HELP {name} requests refused\n# TYPE {name} counter\n");
        for (counter, reason) in self.refusals.iter().zip(Refusal::ALL) {
            let (reason, value) = (reason.name(), counter.load(Ordering::Relaxed));
            let _ = writeln!(out, "{name}{{reason=\"{reason}\"}} {value}");
        }
    }

    fn render_load_seconds(&self, out: &mut String) {
        let name = "daxfs_load_seconds";
        let seconds = Duration::from_nanos(self.load_nanoseconds.load(Ordering::Relaxed)).as_secs_f64();
        let count = self.loads.load(Ordering::Relaxed) + self.failed_loads.load(Ordering::Relaxed);
        let _ = write!(out, "# HELP {name} time that loads and swaps took\n# TYPE {name} summary\n");
        let _ = write!(out, "{name}_sum {seconds}\n{name}_count {count}\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_a_type_for_each_name() {
        let metrics = Metrics::new(Some(LostLines::new(|| 3)));
        metrics.attaches.store(7, Ordering::Relaxed);
        metrics.refuse(Refusal::NotAllowed);
        metrics.failed_loads.store(1, Ordering::Relaxed);
        metrics.load_ended(Duration::from_millis(1500));
        let text = metrics.render();
        assert!(text.contains("daxfs_attaches_total 7\n"), "{text}");
        assert!(text.contains("daxfs_refusals_total{reason=\"not_allowed\"} 1\n"), "{text}");
        assert!(text.contains("daxfs_load_seconds_sum 1.5\ndaxfs_load_seconds_count 1\n"), "{text}");
        assert!(text.contains("daxfs_log_lines_lost_total 3\n"), "{text}");
        let types: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let of_summary = |suffix| name.strip_suffix(suffix).is_some_and(|name| types.contains(&name));
            assert!(types.contains(&name) || of_summary("_sum") || of_summary("_count"), "{line}");
        }
        assert!(text.lines().all(|line| line.starts_with('#') || line.split(' ').count() == 2), "{text}");
    }
}
