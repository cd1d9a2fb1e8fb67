//! A device whose memory others use: an image that does not fit is refused, nothing of it stays, and what fits goes on.

use std::ffi::c_int;

use daxfs::Image;
use daxfs_device::{DeviceError, Error, ImageExt, MappedImage};
use libloading::{Library, Symbol};

use crate::support::{MIB, check, device, image, is_real, live, on_a_gpu};

/// Memory of another user of the first device's primary context, by the driver's own functions; given back at its end.
struct Others {
    library: Library,
    device: c_int,
    pieces: Vec<u64>,
}

impl Others {
    /// Takes memory until less than `least` bytes can be had at once.
    fn take_all_but(least: u64) -> Self {
        // SAFETY: the driver is loaded already, and its initialisers have run.
        let library = unsafe { Library::new("libcuda.so.1") }.unwrap();
        let mut others = Self { library, device: 0, pieces: Vec::new() };
        let mut context = 0_usize;
        let retain =
            others.symbol::<unsafe extern "C" fn(*mut usize, c_int) -> c_int>(b"cuDevicePrimaryCtxRetain\0");
        let push = others.symbol::<unsafe extern "C" fn(usize) -> c_int>(b"cuCtxPushCurrent_v2\0");
        // SAFETY: device 0 is there, and the word is alive.
        assert_eq!(unsafe { retain(&raw mut context, 0) }, 0);
        // SAFETY: the context was retained.
        assert_eq!(unsafe { push(context) }, 0);
        let mut size = 1 << 40;
        while size >= least {
            match others.allocate(size) {
                Some(piece) => others.pieces.push(piece),
                None => size /= 2,
            }
        }
        others
    }

    fn symbol<T>(&self, name: &[u8]) -> Symbol<'_, T> {
        // SAFETY: callers name the signature that the function has in cuda.h.
        unsafe { self.library.get(name) }.unwrap()
    }

    fn allocate(&self, size: u64) -> Option<u64> {
        let allocate = self.symbol::<unsafe extern "C" fn(*mut u64, usize) -> c_int>(b"cuMemAlloc_v2\0");
        let mut piece = 0;
        // SAFETY: a context is current, and the word is alive.
        let code = unsafe { allocate(&raw mut piece, usize::try_from(size).unwrap()) };
        (code == 0).then_some(piece)
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        let free = self.symbol::<unsafe extern "C" fn(u64) -> c_int>(b"cuMemFree_v2\0");
        // SAFETY: each piece was allocated in this context, is freed once, and no work uses it.
        self.pieces.iter().for_each(|piece| assert_eq!(unsafe { free(*piece) }, 0));
        let pop = self.symbol::<unsafe extern "C" fn(*mut usize) -> c_int>(b"cuCtxPopCurrent_v2\0");
        let mut context = 0;
        // SAFETY: the context was pushed, and the word is alive.
        assert_eq!(unsafe { pop(&raw mut context) }, 0);
        let release = self.symbol::<unsafe extern "C" fn(c_int) -> c_int>(b"cuDevicePrimaryCtxRelease_v2\0");
        // SAFETY: the context was retained once.
        assert_eq!(unsafe { release(self.device) }, 0);
    }
}

#[test]
fn an_image_that_does_not_fit_leaves_nothing() {
    on_a_gpu("exhausted::an_image_that_does_not_fit_leaves_nothing", || {
        let (image, device) = (image(), device());
        let free = || device.as_cuda().unwrap().memory().unwrap().0;
        let fits = |image: &Image| -> Result<MappedImage, Error> { image.to(&device) };
        // What the driver makes at first use stays.
        let resident = fits(&image).unwrap();
        let others = Others::take_all_but(2 * MIB);
        let before = free();
        for _ in 0..3 {
            let error = fits(&image).unwrap_err();
            let Error::Device(DeviceError::OutOfMemory { need, free, .. }) = error else { panic!("{error}") };
            assert!(need >= image.superblock().total_size && need > free, "{need} of {free}");
        }
        // Nobody else has any to give back, but others may use a real card.
        assert!(is_real() || free() == before, "{before} became {}", free());
        assert!(free() + 2 * MIB > before, "{before} became {}", free());
        // The copy that is there is what it was.
        check(&image, &resident);
        drop(others);
        check(&image, &fits(&image).unwrap());
        drop((resident, image, device));
        assert_eq!(live(), 0);
    });
}
