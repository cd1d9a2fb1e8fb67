//! `place`: what a plan gives each rank, without a GPU.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::Fixture;
use serde_json::{Value, json};
use std::fs;

fn plan(fixture: &Fixture, rules: &Value) -> String {
    let path = fixture.path("plan.json");
    fs::write(&path, json!({"ranks": 2, "rules": rules}).to_string()).unwrap();
    path.into_os_string().into_string().unwrap()
}

/// A folder with one model of matrices.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    let data: Vec<u8> = (0..=255).cycle().take(2 * 64 * 64).collect();
    let model = common::safetensors(
        &[
            ("a.up", "BF16", &[64, 64], &data),
            ("b.down", "BF16", &[64, 64], &data),
            ("c.down", "BF16", &[64, 64], &data),
            ("d.norm", "BF16", &[64], &data[..128]),
        ],
        8,
    );
    fs::remove_dir_all(fixture.tree()).unwrap();
    fs::create_dir(fixture.tree()).unwrap();
    fs::write(fixture.tree().join("model.safetensors"), model).unwrap();
    fs::write(fixture.tree().join("config.json"), "{}").unwrap();
    fixture.pack(|packer| packer);
    fixture
}

#[test]
fn a_plan_is_shown_rank_by_rank() {
    let fixture = fixture();
    let plan = plan(
        &fixture,
        &json!([
            {"tensors": "*.up", "split": 0},
            {"tensors": "b.*", "split": 1, "gather": true},
            {"tensors": "*.down", "split": 1},
            {"tensors": "*.norm", "on": 0},
            {"files": "*.json", "on": 1},
            {"tensors": "misspelt.*", "on": "all"},
        ]),
    );
    let text = fixture.run(&["place", &plan, "IMAGE"]).ok();
    let rows: Vec<Vec<&str>> = text.lines().take(3).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["RANK", "SIZE", "WHOLE", "CONTIGUOUS", "GATHERED", "STRIDED", "FILES"]);
    assert_eq!(rows[1][3..], ["1", "1", "1", "1", "0"]);
    assert_eq!(rows[2][3..], ["0", "1", "1", "1", "1"]);
    assert!(text.contains("  c.down: dimension 1 of [64, 64], 8.0 KiB\n"), "{text}");
    assert!(text.contains("decide nothing in this image:\n  misspelt.*\n"), "{text}");

    let json = fixture.run(&["place", "--json", &plan, "IMAGE"]).json();
    assert_eq!(json["size"], fs::metadata(fixture.image()).unwrap().len());
    let ranks = json["ranks"].as_array().unwrap();
    // Half of a, all of c with the norm behind it, and half of b from the next multiple of 256 on.
    assert_eq!(ranks[0]["size"], 4096 + 8192 + 256 + 4096, "{json}");
    assert!(ranks.iter().all(|rank| rank["placement"].as_str().unwrap().len() == 64));
    assert_eq!(json["strided"][0]["tensor"], "c.down");
    assert_eq!(json["unused_rules"], json!(["misspelt.*"]));
}

#[test]
fn what_is_wrong_is_said_with_the_file() {
    let fixture = fixture();
    let wrong = plan(&fixture, &json!([{"tensor": "a", "on": 0}]));
    let error = fixture.run(&["place", &wrong, "IMAGE"]).error();
    assert!(error.contains("plan.json: the plan: unknown field `tensor`"), "{error}");
    let odd = plan(&fixture, &json!([{"tensors": "a.up", "split": 2}]));
    let error = fixture.run(&["place", &odd, "IMAGE"]).error();
    assert!(error.contains("tensor \"a.up\" of shape [64, 64]: rule 1 splits dimension 2"), "{error}");
    let error = fixture.run(&["place", "DIR/none.json", "IMAGE"]).error();
    assert!(error.contains("none.json: No such file"), "{error}");
    let image = format!("a={}", fixture.tree().display());
    let wrong = plan(&fixture, &json!([{"tensors": "a"}]));
    let error = fixture.run(&["serve", "--place", &wrong, &image]).error();
    assert!(error.contains("rule 1: a rule says where"), "{error}");
    let good = plan(&fixture, &json!([]));
    let error = fixture.run(&["serve", "--place", &good, "--ranks", "cuda:1", &image]).error();
    assert!(error.contains("names 1 GPUs, and the plan has 2 ranks"), "{error}");
    assert_eq!(fixture.run(&["upload", "a", "--ranks", "cuda:0"]).status, 2);
    assert_eq!(fixture.run(&["upload", "a", "cuda:0", "--place", &good]).status, 2);
}
