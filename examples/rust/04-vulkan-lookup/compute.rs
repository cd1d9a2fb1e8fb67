//! The least that runs a compute shader over buffers: a pipeline, words that the CPU writes and reads, one submission
//! at a time. The tests use it too.

#![allow(unsafe_code, reason = "calls Vulkan")]

use std::cell::Cell;
use std::error::Error;
use std::io::Cursor;
use std::marker::PhantomData;

use daxfs_device::vulkan::ash::{self, vk};
use daxfs_device::vulkan::{Buffer, Device};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// 32-bit words in memory that the CPU and the device share.
pub struct Words<'a> {
    device: &'a Device,
    buffer: vk::Buffer,
    memory: vk::DeviceMemory,
    count: usize,
}

impl<'a> Words<'a> {
    /// Words with these contents, at least one.
    pub fn new(device: &'a Device, contents: &[u32]) -> Result<Self> {
        let raw = device.raw();
        let bytes = size_of_val(contents) as u64;
        let usage = vk::BufferUsageFlags::STORAGE_BUFFER | vk::BufferUsageFlags::TRANSFER_DST;
        let info = vk::BufferCreateInfo::default().size(bytes).usage(usage);
        // SAFETY: a live device, a length that is not 0 (the caller gives a word).
        let buffer = unsafe { raw.create_buffer(&info, None) }?;
        let mut words = Self { device, buffer, memory: vk::DeviceMemory::null(), count: contents.len() };
        // SAFETY: a buffer of this device.
        let needs = unsafe { raw.get_buffer_memory_requirements(buffer) };
        let (instance, physical) = (device.instance(), device.physical_device());
        // SAFETY: a live instance and a physical device of it: both are those of `device`, which is borrowed here.
        let types = unsafe { instance.get_physical_device_memory_properties(physical) };
        let wanted = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
        let fits = |n: &u32| {
            let property = types.memory_types_as_slice().get(*n as usize).map(|memory| memory.property_flags);
            needs.memory_type_bits & (1 << n) != 0 && property.is_some_and(|flags| flags.contains(wanted))
        };
        let memory_type = (0..u32::BITS).find(fits).ok_or("no memory that the CPU sees")?;
        let info =
            vk::MemoryAllocateInfo::default().allocation_size(needs.size).memory_type_index(memory_type);
        // SAFETY: size and type are those that the buffer needs.
        words.memory = unsafe { raw.allocate_memory(&info, None) }?;
        // SAFETY: both are new and of this device; the memory is as long as the buffer needs.
        unsafe { raw.bind_buffer_memory(buffer, words.memory, 0) }?;
        let source = contents.as_ptr();
        // SAFETY: `access` gives a pointer to `count` words; the slice is as long and is no device memory.
        words.access(|mapped| unsafe { mapped.copy_from_nonoverlapping(source, contents.len()) })?;
        Ok(words)
    }

    /// The words as they are now; the device must be through with them.
    pub fn read(&mut self) -> Result<Vec<u32>> {
        let mut contents = vec![0; self.count];
        let (target, count): (*mut u32, _) = (contents.as_mut_ptr(), self.count);
        // SAFETY: `access` gives a pointer to `count` words; the vector has as many and is no device memory.
        self.access(|mapped| unsafe { mapped.copy_to_nonoverlapping(target, count) })?;
        Ok(contents)
    }

    /// Calls `use_words` with a pointer to the words, mapped for that long.
    fn access(&mut self, use_words: impl FnOnce(*mut u32)) -> Result<()> {
        let raw = self.device.raw();
        let flags = vk::MemoryMapFlags::empty();
        // SAFETY: host-visible memory that is not mapped: it is unmapped below, and `&mut self` lets no other thread
        // in.
        let mapped = unsafe { raw.map_memory(self.memory, 0, vk::WHOLE_SIZE, flags) }?;
        use_words(mapped.cast());
        // SAFETY: mapped three lines above; the pointer is not used any more.
        unsafe { raw.unmap_memory(self.memory) };
        Ok(())
    }

    /// For a descriptor.
    pub fn info(&self) -> vk::DescriptorBufferInfo {
        vk::DescriptorBufferInfo::default().buffer(self.buffer).range(vk::WHOLE_SIZE)
    }
}

impl Drop for Words<'_> {
    fn drop(&mut self) {
        // SAFETY: `Shader::run` waits for the device, so no work with the buffer is pending; it is this value's own.
        unsafe { self.device.raw().destroy_buffer(self.buffer, None) };
        // SAFETY: the only buffer in it is gone. Null is allowed.
        unsafe { self.device.raw().free_memory(self.memory, None) };
    }
}

/// A compute shader whose storage buffers are bindings 0, 1, ... of set 0, with push constants.
pub struct Shader<'a> {
    device: &'a Device,
    sets: vk::DescriptorSetLayout,
    layout: vk::PipelineLayout,
    pipeline: vk::Pipeline,
    pool: vk::DescriptorPool,
    set: vk::DescriptorSet,
    /// Not to be shared by threads: a run changes the set, and waits until the device is through with it.
    one_thread: PhantomData<Cell<()>>,
}

impl<'a> Shader<'a> {
    /// Builds the pipeline of a SPIR-V module with the entry point `main`, `bindings` buffers and `constants` words.
    pub fn new(device: &'a Device, spirv: &[u8], bindings: u32, constants: u32) -> Result<Self> {
        let raw = device.raw();
        let null = vk::DescriptorSet::null();
        let mut shader = Self {
            device,
            sets: vk::DescriptorSetLayout::null(),
            layout: vk::PipelineLayout::null(),
            pipeline: vk::Pipeline::null(),
            pool: vk::DescriptorPool::null(),
            set: null,
            one_thread: PhantomData,
        };
        let kind = vk::DescriptorType::STORAGE_BUFFER;
        let stage = vk::ShaderStageFlags::COMPUTE;
        let slot = |n| {
            vk::DescriptorSetLayoutBinding::default()
                .binding(n)
                .descriptor_type(kind)
                .descriptor_count(1)
                .stage_flags(stage)
        };
        let slots: Vec<_> = (0..bindings).map(slot).collect();
        let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&slots);
        // SAFETY: a live device and a valid description.
        shader.sets = unsafe { raw.create_descriptor_set_layout(&info, None) }?;
        let sets = [shader.sets];
        let ranges = [vk::PushConstantRange::default().stage_flags(stage).size(constants * 4)];
        let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets).push_constant_ranges(&ranges);
        // SAFETY: the set layout is live; the callers stay below the 128 bytes that every device has for constants.
        shader.layout = unsafe { raw.create_pipeline_layout(&info, None) }?;

        let code = ash::util::read_spv(&mut Cursor::new(spirv))?;
        let info = vk::ShaderModuleCreateInfo::default().code(&code);
        // SAFETY: the callers give valid SPIR-V, built from the source beside it.
        let module = unsafe { raw.create_shader_module(&info, None) }?;
        let stage = vk::PipelineShaderStageCreateInfo::default().stage(stage).module(module).name(c"main");
        let info = [vk::ComputePipelineCreateInfo::default().stage(stage).layout(shader.layout)];
        // SAFETY: module and layout are live and fit each other: the callers name the bindings that the shader has.
        let made = unsafe { raw.create_compute_pipelines(vk::PipelineCache::null(), &info, None) };
        // SAFETY: a pipeline does not need its module any more.
        unsafe { raw.destroy_shader_module(module, None) };
        shader.pipeline = made.map_err(|(_, error)| error)?.into_iter().next().ok_or("no pipeline")?;

        let sizes = [vk::DescriptorPoolSize::default().ty(kind).descriptor_count(bindings)];
        let info = vk::DescriptorPoolCreateInfo::default().max_sets(1).pool_sizes(&sizes);
        // SAFETY: a live device and a valid description.
        shader.pool = unsafe { raw.create_descriptor_pool(&info, None) }?;
        let info = vk::DescriptorSetAllocateInfo::default().descriptor_pool(shader.pool).set_layouts(&sets);
        // SAFETY: the pool is made for exactly this set.
        shader.set = unsafe { raw.allocate_descriptor_sets(&info) }?.into_iter().next().unwrap_or(null);
        Ok(shader)
    }

    /// Runs `groups` workgroups and waits for them. `shared` are the buffers whose memory others wrote.
    pub fn run(
        &self,
        shared: &[&Buffer],
        bindings: &[vk::DescriptorBufferInfo],
        constants: &[u32],
        groups: u32,
    ) -> Result<()> {
        let raw = self.device.raw();
        let kind = vk::DescriptorType::STORAGE_BUFFER;
        let writes: Vec<_> = bindings
            .iter()
            .zip(0..)
            .map(|(info, n)| {
                let write = vk::WriteDescriptorSet::default().dst_set(self.set).dst_binding(n);
                write.descriptor_type(kind).buffer_info(std::slice::from_ref(info))
            })
            .collect();
        // SAFETY: the set is not in use (each run waits, and no other thread has this value), and the bindings are of
        // live buffers with that usage.
        unsafe { raw.update_descriptor_sets(&writes, &[]) };
        let constants: Vec<u8> = constants.iter().flat_map(|word| word.to_le_bytes()).collect();
        submit(self.device, |commands| {
            acquire(self.device, commands, shared);
            let point = vk::PipelineBindPoint::COMPUTE;
            // SAFETY: a recording command buffer and a live pipeline.
            unsafe { raw.cmd_bind_pipeline(commands, point, self.pipeline) };
            // SAFETY: the set was made for this layout.
            unsafe { raw.cmd_bind_descriptor_sets(commands, point, self.layout, 0, &[self.set], &[]) };
            let stage = vk::ShaderStageFlags::COMPUTE;
            // SAFETY: the layout has a range of as many bytes, since the callers give all constants.
            unsafe { raw.cmd_push_constants(commands, self.layout, stage, 0, &constants) };
            // SAFETY: pipeline, set and constants are bound; devices take at least 65535 groups.
            unsafe { raw.cmd_dispatch(commands, groups, 1, 1) };
            let written = [vk::MemoryBarrier::default()
                .src_access_mask(vk::AccessFlags::SHADER_WRITE)
                .dst_access_mask(vk::AccessFlags::HOST_READ)];
            let (from, to) = (vk::PipelineStageFlags::COMPUTE_SHADER, vk::PipelineStageFlags::HOST);
            let none = vk::DependencyFlags::empty();
            // SAFETY: a recording command buffer outside of a render pass.
            unsafe { raw.cmd_pipeline_barrier(commands, from, to, none, &written, &[], &[]) };
        })
    }
}

impl Drop for Shader<'_> {
    fn drop(&mut self) {
        let raw = self.device.raw();
        // SAFETY: each run waits, so nothing is pending; all are this value's own, and null is allowed.
        unsafe { raw.destroy_descriptor_pool(self.pool, None) };
        // SAFETY: as above.
        unsafe { raw.destroy_pipeline(self.pipeline, None) };
        // SAFETY: as above.
        unsafe { raw.destroy_pipeline_layout(self.layout, None) };
        // SAFETY: as above.
        unsafe { raw.destroy_descriptor_set_layout(self.sets, None) };
    }
}

/// Copies `len` bytes from the start of one buffer to the start of another, and waits.
#[allow(dead_code, reason = "for the tests")]
pub fn copy(device: &Device, from: &Buffer, to: &Buffer, len: u64) -> Result<()> {
    submit(device, |commands| {
        acquire(device, commands, &[from]);
        let region = [vk::BufferCopy::default().size(len)];
        // SAFETY: a recording command buffer; live buffers of this device with these usages, both of `len` bytes or
        // more.
        unsafe { device.raw().cmd_copy_buffer(commands, from.handle(), to.handle(), &region) };
    })
}

/// Makes what others wrote into the buffers visible to the commands that follow.
fn acquire(device: &Device, commands: vk::CommandBuffer, shared: &[&Buffer]) {
    let barriers: Vec<_> = shared.iter().map(|buffer| buffer.acquire()).collect();
    let (from, to) = (vk::PipelineStageFlags::TOP_OF_PIPE, vk::PipelineStageFlags::ALL_COMMANDS);
    let none = vk::DependencyFlags::empty();
    // SAFETY: a recording command buffer outside of a render pass, and live buffers.
    unsafe { device.raw().cmd_pipeline_barrier(commands, from, to, none, &[], &barriers, &[]) };
}

/// Records commands, submits them, and waits until the device is through.
fn submit(device: &Device, record: impl FnOnce(vk::CommandBuffer)) -> Result<()> {
    let raw = device.raw();
    let info = vk::CommandPoolCreateInfo::default().queue_family_index(device.queue_family());
    // SAFETY: a live device and a family of it.
    let pool = unsafe { raw.create_command_pool(&info, None) }?;
    let result = submit_from(device, pool, record);
    // SAFETY: `submit_from` has waited, or submitted nothing.
    unsafe { raw.destroy_command_pool(pool, None) };
    result
}

fn submit_from(device: &Device, pool: vk::CommandPool, record: impl FnOnce(vk::CommandBuffer)) -> Result<()> {
    let raw = device.raw();
    let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
    // SAFETY: a live pool.
    let commands = unsafe { raw.allocate_command_buffers(&info) }?;
    let first = *commands.first().ok_or("no command buffer")?;
    let once = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
    // SAFETY: a new command buffer.
    unsafe { raw.begin_command_buffer(first, &once) }?;
    record(first);
    // SAFETY: begun above.
    unsafe { raw.end_command_buffer(first) }?;
    let submits = [vk::SubmitInfo::default().command_buffers(&commands)];
    // The queue of a device that was opened here is shared and locked; one of a device that was lent is the lender's.
    let guard = device.queue();
    let queue = match &guard {
        Some(queue) => queue.handle(),
        // SAFETY: the programs that lend a device made it with one queue of this family, and use it in this thread
        // alone.
        None => unsafe { raw.get_device_queue(device.queue_family(), 0) },
    };
    // SAFETY: nobody else uses the queue now, and the command buffer is complete.
    unsafe { raw.queue_submit(queue, &submits, vk::Fence::null()) }?;
    // SAFETY: as above.
    Ok(unsafe { raw.queue_wait_idle(queue) }?)
}
