// Caption a picture from Rust, without crates: rustc --edition 2021 caption.rs -L native=PREFIX/lib
use std::ffi::{c_char, c_double, c_int, c_void, CStr, CString};
use std::ptr::{null, null_mut};

#[link(name = "blip2rt")]
extern "C" {
    fn blip2rt_load(folder: *const c_char, options: *const *const c_char, model: *mut *mut c_void, error: *mut *mut c_void) -> c_int;
    fn blip2rt_model_free(model: *mut c_void);
    fn blip2rt_image_file(model: *mut c_void, path: *const c_char, image: *mut *mut c_void, error: *mut *mut c_void) -> c_int;
    fn blip2rt_image_free(image: *mut c_void);
    fn blip2rt_encode(model: *mut c_void, image: *mut c_void, features: *mut *mut c_void, error: *mut *mut c_void) -> c_int;
    fn blip2rt_features_free(features: *mut c_void);
    fn blip2rt_caption(
        model: *mut c_void, features: *mut c_void, prompt: *const c_char, options: *const *const c_char,
        callback: Option<extern "C" fn(*const c_char, *mut c_void) -> c_int>, user: *mut c_void,
        texts: *mut *mut c_void, error: *mut *mut c_void,
    ) -> c_int;
    fn blip2rt_texts_count(texts: *mut c_void) -> usize;
    fn blip2rt_texts_get(texts: *mut c_void, index: usize) -> *const c_char;
    fn blip2rt_texts_score(texts: *mut c_void, index: usize) -> c_double;
    fn blip2rt_texts_free(texts: *mut c_void);
    fn blip2rt_error_message(error: *mut c_void) -> *const c_char;
    fn blip2rt_error_free(error: *mut c_void);
}

/// A handle that is freed when it goes out of scope.
struct Handle(*mut c_void, unsafe extern "C" fn(*mut c_void));

impl Drop for Handle {
    fn drop(&mut self) {
        unsafe { (self.1)(self.0) }
    }
}

/// Calls a function that makes a handle.
fn make(free: unsafe extern "C" fn(*mut c_void), call: impl FnOnce(*mut *mut c_void, *mut *mut c_void) -> c_int) -> Result<Handle, String> {
    let (mut made, mut error) = (null_mut(), null_mut());
    if call(&mut made, &mut error) == 0 {
        return Ok(Handle(made, free));
    }
    let error = Handle(error, blip2rt_error_free);
    let message = unsafe { blip2rt_error_message(error.0) };
    if message.is_null() {
        return Err("out of memory".into());
    }
    Err(unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned())
}

fn run(path: &str) -> Result<(), String> {
    let path = CString::new(path).map_err(|error| error.to_string())?;
    let options = [c"num_captions".as_ptr(), c"3".as_ptr(), null()];
    unsafe {
        let model = make(blip2rt_model_free, |model, error| blip2rt_load(null(), null(), model, error))?;
        let image = make(blip2rt_image_free, |image, error| blip2rt_image_file(model.0, path.as_ptr(), image, error))?;
        let features = make(blip2rt_features_free, |features, error| blip2rt_encode(model.0, image.0, features, error))?;
        let texts = make(blip2rt_texts_free, |texts, error| {
            blip2rt_caption(model.0, features.0, null(), options.as_ptr(), None, null_mut(), texts, error)
        })?;
        for i in 0..blip2rt_texts_count(texts.0) {
            let text = CStr::from_ptr(blip2rt_texts_get(texts.0, i)).to_string_lossy();
            println!("{:6.2}  {}", blip2rt_texts_score(texts.0, i), text);
        }
    }
    Ok(())
}

fn main() {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    for path in &paths {
        if let Err(message) = run(path) {
            eprintln!("{message}");
            std::process::exit(1);
        }
    }
}
