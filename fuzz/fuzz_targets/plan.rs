//! Takes any text for a placement plan, and follows it for an image with tensors of several forms: what a rank gets lies
//! in the tensor, all ranks together have what the plan says, and the same plan has the same identity.

#![no_main]

#[path = "../../tests/src/forge.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod forge;

use std::sync::OnceLock;

use daxfs::Image;
use daxfs_device::Plan;
use forge::Forge;
use libfuzzer_sys::fuzz_target;

/// Tensors of some shapes and types, one of them beneath a whole byte and one without elements.
const HEADER: &str = r#"{"layers.0.q.weight":{"dtype":"F16","shape":[8,6],"data_offsets":[0,96]},
"layers.1.q.weight":{"dtype":"F32","shape":[4,2,3],"data_offsets":[96,192]},
"layers.1.bias":{"dtype":"U8","shape":[7],"data_offsets":[192,199]},
"scale":{"dtype":"I8","shape":[],"data_offsets":[199,200]},
"packed":{"dtype":"F4","shape":[4,4],"data_offsets":[200,208]},
"none":{"dtype":"F16","shape":[0,5],"data_offsets":[208,208]}}"#;

fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut file = (HEADER.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(HEADER.as_bytes());
        file.extend(0..208u8);
        let mut image = Forge::new(5);
        image.dir(1, &[(2, "model.safetensors"), (3, "config.json"), (4, "d")]);
        image.file(2, &file).file(3, b"{}").dir(4, &[(5, "tokenizer.json")]).file(5, b"[]");
        Image::from_bytes(image.finish()).expect("a sound image")
    })
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(plan) = Plan::parse(text) else { return };
    let image = image();
    for rank in 0..plan.ranks().min(9) {
        let Ok(placement) = plan.place(image, rank) else { continue };
        assert_eq!(placement.is_empty(), placement.len() == 0);
        // With some bytes in front of each of a handful of tensors and files.
        assert!(placement.len() <= image.region().len() + 16 * 4096, "a rank holds no more than the image");
        assert!(placement.unused_rules().iter().all(|rule| *rule < plan.patterns().count()));
        let again = plan.place(image, rank).expect("as before");
        assert_eq!(placement.identity(), again.identity());
        for assigned in placement.tensors() {
            let (tensor, assigned) = assigned.expect("what was placed");
            if let daxfs_device::placement::Assigned::Part { dim, range, .. } = &assigned {
                let size = tensor.shape()[*dim];
                assert!(range.start <= range.end && range.end <= size, "{}: {range:?}", tensor.name());
            }
            assert_eq!(placement.assigned(&tensor).expect("as before"), assigned);
        }
    }
});
