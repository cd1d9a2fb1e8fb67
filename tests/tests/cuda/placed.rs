//! Copies by a plan: each rank has its own of an image in its GPU's memory, and says so of what it has not.

use std::fs;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use daxfs::{Image, Tensor};
use daxfs_device::UploadOptions;
use daxfs_device::placement::{Assigned, PartLayout};
use daxfs_device::{Device, DeviceError, Error, ImageExt, MappedImage, Placement, Plan, Route, TensorSlice};
use mkimage::{HugePages, Memory};
use serde_json::Value;

use crate::holder::{Holder, PATIENCE};
use crate::support::{GPU, bytes, check, device, image, live, on_a_gpu, pack, read, simulated};

const PLAN: &str = r#"{"ranks": 2, "rules": [
    {"tensors": "w", "split": 1, "gather": true},
    {"tensors": "q", "split": 0},
    {"tensors": "b", "on": 1},
    {"files": "file-7*", "on": 0}
]}"#;

fn place(image: &Image, plan: &str, rank: usize) -> Placement {
    Plan::parse(plan).unwrap().place(image, rank).unwrap()
}

fn tensor(image: &Image, name: &str) -> Tensor {
    image.tensors().unwrap().get(name).unwrap()
}

/// The elements of a part of a matrix, found by its shape and strides.
fn elements(part: &TensorSlice, size: usize) -> Vec<u8> {
    let (bytes, shape, strides) = (read(part.place()), part.shape(), part.strides());
    let indices = (0..shape[0]).flat_map(|row| (0..shape[1]).map(move |column| (row, column)));
    let at = |(row, column)| usize::try_from(row * strides[0] + column * strides[1]).unwrap() * size;
    indices.flat_map(|index| bytes[at(index)..at(index) + size].to_vec()).collect()
}

/// Columns `2 * rank` and the next of the tensor "w".
fn columns(image: &Image, rank: usize) -> Vec<u8> {
    let whole = tensor(image, "w").bytes().unwrap().to_vec();
    whole.chunks(16).flat_map(|row| row[8 * rank..8 * rank + 8].to_vec()).collect()
}

fn not_placed(error: Error, what: &str) {
    assert!(matches!(error, Error::Device(DeviceError::NotPlaced { .. })), "{error}");
    assert!(error.to_string().contains(what), "{error}");
}

/// What `PLAN` gives a rank.
fn check_rank(image: &Image, resident: &MappedImage, rank: usize) {
    let part = resident.part(&tensor(image, "w")).unwrap();
    assert_eq!((part.shape(), part.strides(), part.is_contiguous()), (&[256, 2][..], &[2, 1][..], true));
    assert!(elements(&part, 4) == columns(image, rank));
    assert_eq!(part.place().address().unwrap() % 256, 0);
    not_placed(resident.tensor(&tensor(image, "w")).unwrap_err(), "tensor \"w\" is not on rank");

    let q = tensor(image, "q");
    let half = q.bytes().unwrap().to_vec()[6 * rank..6 * rank + 6].to_vec();
    let part = resident.part(&q).unwrap();
    assert_eq!((part.shape(), read(part.place())), (&[2, 6][..], half.clone()));
    // In the numbers of the whole tensor, as far as it is there.
    let rows = 2 * rank as u64..2 * rank as u64 + 2;
    assert_eq!(read(resident.slice(&q, 0, rows).unwrap().place()), half);
    not_placed(resident.slice(&q, 0, 1..3).unwrap_err(), "1..3 of dimension 0 of tensor \"q\"");

    let b = tensor(image, "b");
    let file = image.file("file-70001").unwrap();
    match rank {
        0 => {
            not_placed(resident.tensor(&b).unwrap_err(), "rank 0, which has nothing of it");
            not_placed(resident.part(&b).unwrap_err(), "tensor \"b\"");
            assert!(read(&resident.file(&file).unwrap().one().unwrap()) == bytes(70_001, 70_001));
        }
        _ => {
            assert_eq!(read(&resident.tensor(&b).unwrap().one().unwrap()), b.bytes().unwrap().to_vec());
            not_placed(resident.file(&file).unwrap_err(), "file-70001 is not on rank 1");
        }
    }
    let model = image.file("model.safetensors").unwrap();
    not_placed(resident.file(&model).unwrap_err(), "model.safetensors is not on rank");
}

#[test]
fn each_rank_has_its_own() {
    on_a_gpu("placed::each_rank_has_its_own", || {
        let image = image();
        for rank in 0..2 {
            let placement = place(&image, PLAN, rank);
            for (threads, piece) in [(1, 4096), (3, 5000), (2, 64 << 20)] {
                let options = UploadOptions::new().threads(threads).piece(piece).verify(true);
                let resident = placement.to_with(&device(), &options).unwrap();
                assert_eq!(resident.memory().route(), Route::Copy);
                assert_eq!((resident.buffers().len(), resident.buffers()[0].len()), (1, placement.len()));
                assert_eq!(resident.placement().unwrap().rank(), rank);
                check_rank(&image, &resident, rank);
            }
        }
        assert_eq!(live(), 0);
    });
}

/// What this process has pinned is where whole copies come from; those of a rank are read.
#[test]
fn pages_that_are_pinned_do_not_mislead_it() {
    on_a_gpu("placed::pages_that_are_pinned_do_not_mislead_it", || {
        let image = Image::from_fd(pack(&Memory::SharedMemfd(HugePages::No))).unwrap();
        let mapped = image.map(&device()).unwrap();
        for rank in 0..2 {
            let resident = place(&image, PLAN, rank).to(&device()).unwrap();
            check_rank(&image, &resident, rank);
        }
        drop(mapped);
        assert_eq!(live(), 0);
    });
}

#[test]
fn parts_with_gaps_are_views_of_the_whole_tensor() {
    on_a_gpu("placed::parts_with_gaps_are_views_of_the_whole_tensor", || {
        let image = image();
        let placement = place(&image, r#"{"ranks": 2, "rules": [{"tensors": "w", "split": 1}]}"#, 1);
        let w = tensor(&image, "w");
        let assigned = placement.assigned(&w).unwrap();
        assert_eq!(assigned, Assigned::Part { dim: 1, range: 2..4, layout: PartLayout::Strided });
        let resident = placement.to(&device()).unwrap();
        let part = resident.part(&w).unwrap();
        assert_eq!((part.shape(), part.strides(), part.is_contiguous()), (&[256, 2][..], &[4, 1][..], false));
        assert!(elements(&part, 4) == columns(&image, 1));
        let loan = daxfs_device::dlpack::export_slice_versioned(&w, &part, true, GPU).unwrap();
        // SAFETY: the loan is live until its deleter is called, below.
        let managed = unsafe { loan.as_ref() };
        assert_eq!(managed.dl_tensor.data.addr() as u64, part.place().address().unwrap());
        assert_eq!(read(&resident.tensor(&w).unwrap().one().unwrap()), w.bytes().unwrap().to_vec());
        // SAFETY: the deleter of this loan, called once.
        unsafe { managed.deleter.unwrap()(loan.as_ptr()) };
        // Without a plan a tensor is its own part.
        let whole = image.to(&device()).unwrap();
        let part = whole.part(&w).unwrap();
        assert_eq!((part.shape(), read(part.place())), (w.shape(), w.bytes().unwrap().to_vec()));
    });
}

#[test]
fn a_rank_without_anything_is_refused() {
    on_a_gpu("placed::a_rank_without_anything_is_refused", || {
        let placement = place(&image(), r#"{"ranks": 1, "rules": [{"tensors": "*", "on": "none"}]}"#, 0);
        not_placed(placement.to(&device()).unwrap_err(), "rank 0, which has nothing of it");
        assert_eq!(live(), 0);
    });
}

#[test]
fn another_process_attaches_by_the_same_plan() {
    on_a_gpu("placed::another_process_attaches_by_the_same_plan", || {
        let image = image();
        let resident = place(&image, PLAN, 1).to(&device()).unwrap();
        let shared = resident.buffers()[0].as_cuda().unwrap().share().unwrap();
        // As another process opens it.
        let other = Image::from_fd(image.region().fd().unwrap().try_clone_to_owned().unwrap()).unwrap();
        let placement = place(&other, PLAN, 1);
        assert_eq!(placement.identity(), resident.placement().unwrap().identity());
        drop((resident, image));
        let attached = device().attach_placed(&placement, &shared).unwrap();
        assert_eq!(attached.memory().route(), Route::Descriptor);
        check_rank(&other, &attached, 1);
        // Each part is of one image, whatever bytes another one has at the same place.
        let stranger = Image::from_fd(other.region().fd().unwrap().try_clone_to_owned().unwrap()).unwrap();
        for name in ["w", "q", "b"] {
            let error = attached.part(&tensor(&stranger, name)).unwrap_err();
            assert!(matches!(error, Error::Device(DeviceError::OtherImage { .. })), "{name}: {error}");
        }
        let error = device().attach(&other, &shared).unwrap_err();
        assert!(
            matches!(error, Error::Image(daxfs::Error::Memory(dmabuf::Error::OutOfBounds { .. }))),
            "{error}"
        );
    });
}

#[test]
fn a_holder_keeps_what_each_rank_has() {
    on_a_gpu("placed::a_holder_keeps_what_each_rank_has", || {
        let holder = Holder::start(&[]);
        let image = holder.image();
        place(&image, PLAN, 0).to(&device()).unwrap().keep().unwrap();
        image.to(&device()).unwrap().keep().unwrap();
        let route = |placement: &Placement| {
            let resident = placement.to(&device()).unwrap();
            check_rank(placement.image(), &resident, placement.rank());
            resident.memory().route()
        };
        let again = holder.image();
        assert_eq!(route(&place(&again, PLAN, 0)), Route::Descriptor);
        assert_eq!(route(&place(&again, PLAN, 1)), Route::Copy, "nobody has made that one");
        // What the plan looks like makes no difference, what it says does.
        let other = PLAN.replace("true", "false");
        assert_ne!(place(&again, &other, 0).identity(), place(&again, PLAN, 0).identity());
        let same = PLAN.replace("file-7*", "file-70001");
        assert_eq!(route(&place(&again, &same, 0)), Route::Descriptor);
        let whole = again.to(&device()).unwrap();
        assert_eq!(whole.memory().route(), Route::Descriptor);
        check(&again, &whole);

        let listed = holder.json(&["ps", "--json"]);
        let copies = listed["images"][0]["copies"].as_array().unwrap();
        assert_eq!(copies.len(), 2);
        let identity: String =
            place(&again, PLAN, 0).identity().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(copies[0]["placement"] == *identity && copies[1]["placement"].is_null(), "{copies:?}");
        let table = String::from_utf8(holder.run(&["ps"]).stdout).unwrap();
        assert!(table.contains("1 + 1 placed"), "{table}");
    });
}

#[test]
fn the_command_gives_each_rank_its_own() {
    let settings = [("DAXFS_FAKE_CUDA_DEVICES", "3")];
    simulated("placed::the_command_gives_each_rank_its_own", &settings, || {
        let holder = Holder::start(&[]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plan.json");
        fs::write(&file, PLAN).unwrap();
        let plan = file.to_str().unwrap();
        let upload = |more: &[&str]| {
            let answer = holder.json(&[&["upload", "m", "--json", "--place", plan], more].concat());
            let copies = answer["copies"].as_array().unwrap().clone();
            let text = |copy: Value| format!("{} {} {}", copy["device"], copy["rank"], copy["copied"]);
            copies.into_iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(upload(&[]), ["\"cuda:0\" 0 true", "\"cuda:1\" 1 true"]);
        assert_eq!(upload(&[]), ["\"cuda:0\" 0 false", "\"cuda:1\" 1 false"]);
        let turned = ["--ranks", "cuda:2,cuda:1"];
        assert_eq!(upload(&turned), ["\"cuda:2\" 0 true", "\"cuda:1\" 1 false"]);
        let image = holder.image();
        for (number, rank) in [(0, 0), (1, 1), (2, 0)] {
            let resident = place(&image, PLAN, rank).to(&Device::open("cuda", number).unwrap()).unwrap();
            assert_eq!(resident.memory().route(), Route::Descriptor);
            check_rank(&image, &resident, rank);
        }
        let output = holder.run(&["upload", "m", "--place", plan, "--ranks", "cuda:0"]);
        assert!(String::from_utf8_lossy(&output.stderr).contains("names 1 GPUs, and the plan has 2 ranks"));
    });
}

#[test]
fn a_holder_has_its_first_images_placed() {
    let settings = [("DAXFS_FAKE_CUDA_DEVICES", "2")];
    simulated("placed::a_holder_has_its_first_images_placed", &settings, || {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plan.json");
        fs::write(&file, PLAN).unwrap();
        let plan = ["--place", file.to_str().unwrap(), "--ranks", "cuda:1,cuda:0", "--into", "cuda:1"];
        let holder = Holder::start(&plan);
        let image = holder.image();
        let route = |number: usize, rank: usize| {
            let resident = place(&image, PLAN, rank).to(&Device::open("cuda", number).unwrap()).unwrap();
            resident.memory().route()
        };
        let start = Instant::now();
        while route(1, 0) != Route::Descriptor || route(0, 1) != Route::Descriptor {
            assert!(start.elapsed() < PATIENCE, "no copies");
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!((route(0, 0), route(1, 1)), (Route::Copy, Route::Copy));
        assert_eq!(image.to(&Device::open("cuda", 1).unwrap()).unwrap().memory().route(), Route::Descriptor);
    });
}

/// A copy of what may change is none of it.
#[test]
fn memory_that_could_change_has_no_kept_copy() {
    on_a_gpu("placed::memory_that_could_change_has_no_kept_copy", || {
        let shared = pack(&Memory::SharedMemfd(HugePages::No));
        let image = Image::from_fd(shared.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let resident = place(&image, PLAN, 0).to(&device()).unwrap();
        check_rank(&image, &resident, 0);
        let error = resident.keep().unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::NotKept { .. })), "{error}");
    });
}
