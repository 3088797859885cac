"""Loop shapes as people write them: each trains a small real model and says what a watcher should count.

A shape is a function of a `Clock` that returns the model that it trained. The clock is the loop's own: it times the
waits for training batches, to compare shares with.
"""

import contextlib
import itertools
import queue
import tempfile
import threading
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

SHAPES = {}


class Clock:
    """What the loop itself measures: waits for batches, and all time from the first request to the last."""

    def __init__(self):
        self.wait = self.total = 0.0

    def over(self, batches):
        """Go over *batches* as `for` does; the wait for the end, and the workers' end, belong to no step."""
        asked = time.perf_counter()
        iterator = iter(batches)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            got = time.perf_counter()
            yield batch  # left by `break`, its batch was not used
            now = time.perf_counter()
            self.wait += got - asked
            self.total += now - asked
            asked = now


class Rows(Dataset):
    def __init__(self, length=32, sleep_s=0.001, bad=None):
        self.length, self.sleep_s, self.bad = length, sleep_s, bad

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if self.bad is not None and index == self.bad:
            raise ValueError("a damaged sample")
        time.sleep(self.sleep_s)
        generator = torch.Generator().manual_seed(index)
        return torch.randn(8, generator=generator), torch.randn(1, generator=generator)


class Stream(IterableDataset):
    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        share = range(32) if info is None else range(info.id * 16, info.id * 16 + 16)
        rows = Rows()
        return (rows[index] for index in share)


class Nested(Dataset):
    """A data set that goes over a loader of its own."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        inputs, targets = next(iter(DataLoader(Rows(8), batch_size=8)))
        return inputs[0], targets[0]


def shape(expected_steps, **expected):
    def file(function):
        SHAPES[function.__name__] = (function, {"steps": expected_steps, **expected})
        return function

    return file


def build(optimizer=torch.optim.SGD, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    return model, optimizer(model.parameters(), lr=0.01, **options)


def loss_of(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def update(model, optimizer, batch):
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    optimizer.step()


def plain(clock, epochs=2, loader=None, **options):
    model, optimizer = build()
    loader = DataLoader(Rows(), batch_size=4, **options) if loader is None else loader
    for _ in range(epochs):
        for batch in clock.over(loader):
            update(model, optimizer, batch)
    return model


@shape(16, epochs=2, samples=64)
def plain_workers_0(clock):
    return plain(clock)


@shape(16, epochs=2, samples=64)
def workers_2(clock):
    return plain(clock, num_workers=2)


@shape(24, epochs=3, samples=96)
def persistent_workers(clock):
    return plain(clock, 3, num_workers=2, persistent_workers=True)


@shape(8, epochs=1, samples=32, bitwise=False)
def in_order_false(clock):
    return plain(clock, 1, num_workers=2, in_order=False)


@shape(8, epochs=1, samples=32)
def iterable_dataset(clock):
    return plain(clock, 1, DataLoader(Stream(), batch_size=4, num_workers=2))


@shape(8, epochs=1, samples=30)
def last_batch_is_partial(clock):
    return plain(clock, 1, DataLoader(Rows(30), batch_size=4))


@shape(8, epochs=1, samples=32)
def batches_are_dicts(clock):
    def collate(rows):
        return {"x": torch.stack([row[0] for row in rows]), "y": torch.stack([row[1] for row in rows])}

    model, optimizer = build()
    for batch in clock.over(DataLoader(Rows(), batch_size=4, collate_fn=collate)):
        update(model, optimizer, (batch["x"], batch["y"]))
    return model


def accumulate(clock, count, every, *, step_at_end=False):
    model, optimizer = build()
    for number, batch in enumerate(clock.over(DataLoader(Rows(4 * count), batch_size=4)), 1):
        loss_of(model, batch).backward()
        if number % every == 0 or (step_at_end and number == count):
            optimizer.step()
            optimizer.zero_grad()
    return model


@shape(4, epochs=1, samples=64)
def accumulation_of_4(clock):
    return accumulate(clock, 16, 4)


@shape(5, epochs=1, samples=72)
def accumulation_with_a_partial_last(clock):
    return accumulate(clock, 18, 4, step_at_end=True)


@shape(4, samples=64, share=False)
def accumulation_fetched_up_front(clock):
    model, optimizer = build()
    iterator = iter(DataLoader(Rows(64), batch_size=4))
    for _ in range(4):
        for batch in [next(iterator) for _ in range(4)]:
            loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@shape(16, epochs=2, evaluation=16)
def evaluation_under_no_grad(clock):
    model, optimizer = build()
    loader, held_out = DataLoader(Rows(), batch_size=4), DataLoader(Rows(), batch_size=4)
    for _ in range(2):
        for batch in clock.over(loader):
            update(model, optimizer, batch)
        with torch.no_grad():
            for batch in held_out:
                loss_of(model, batch)
    return model


@shape(16, epochs=2, evaluation=16)
def evaluation_with_no_grad_in_its_body_only(clock):
    model, optimizer = build()
    loader, held_out = DataLoader(Rows(), batch_size=4), DataLoader(Rows(), batch_size=4)
    for _ in range(2):
        for batch in clock.over(loader):
            update(model, optimizer, batch)
        for batch in held_out:
            with torch.no_grad():
                loss_of(model, batch)
    return model


@shape(8, evaluation=6, share=False)
def evaluation_left_by_break(clock):
    model, optimizer = build()
    loader, held_out = DataLoader(Rows(), batch_size=4), DataLoader(Rows(48), batch_size=4)
    for number, batch in enumerate(clock.over(loader), 1):
        update(model, optimizer, batch)
        if number == 4:
            with torch.no_grad():
                for count, rows in enumerate(held_out, 1):
                    loss_of(model, rows)
                    if count == 6:
                        break
    return model


@shape(16, epochs=2, evaluation=16)
def evaluation_on_the_same_loader(clock):
    model, optimizer = build()
    loader = DataLoader(Rows(), batch_size=4)
    for _ in range(2):
        for batch in clock.over(loader):
            update(model, optimizer, batch)
        with torch.no_grad():
            for batch in loader:
                loss_of(model, batch)
    return model


@shape(15, epochs=3)
def epochs_left_by_break(clock):
    model, optimizer = build()
    loader = DataLoader(Rows(), batch_size=4)
    for _ in range(3):
        for number, batch in enumerate(clock.over(loader), 1):
            if number == 6:
                break
            update(model, optimizer, batch)
    return model


@shape(8, share=False)
def two_loaders_zipped(clock):
    model, optimizer = build()
    for one, two in zip(DataLoader(Rows(), batch_size=4), DataLoader(Rows(), batch_size=4), strict=True):
        optimizer.zero_grad()
        (loss_of(model, one) + loss_of(model, two)).backward()
        optimizer.step()
    return model


@shape(20, share=False)
def itertools_cycle(clock):
    model, optimizer = build()
    for batch in itertools.islice(itertools.cycle(DataLoader(Rows(), batch_size=4)), 20):
        update(model, optimizer, batch)
    return model


@shape(6, share=False)
def a_new_iterator_each_step(clock):
    model, optimizer = build()
    loader = DataLoader(Rows(), batch_size=4)
    for _ in range(6):
        update(model, optimizer, next(iter(loader)))
    return model


@shape(12, share=False)
def no_loader(clock):
    model, optimizer = build()
    for _ in range(12):
        update(model, optimizer, (torch.ones(4, 8), torch.ones(4, 1)))
    return model


@shape(40, share=False)
def five_updates_per_fetch(clock):
    model, optimizer = build()
    for batch in DataLoader(Rows(), batch_size=4):
        for _ in range(5):
            update(model, optimizer, batch)
    return model


@shape(10, share=False)
def actor_critic_without_loader(clock):
    (actor, actor_optimizer), (critic, critic_optimizer) = build(), build(torch.optim.Adam)
    for _ in range(10):
        batch = torch.ones(4, 8), torch.ones(4, 1)
        update(critic, critic_optimizer, batch)
        update(actor, actor_optimizer, batch)
    return nn.ModuleList([actor, critic])


@shape(8, epochs=1)
def gan_two_optimizers(clock):
    (one, first), (two, second) = build(), build(torch.optim.Adam)
    for batch in clock.over(DataLoader(Rows(), batch_size=4)):
        update(one, first, batch)
        update(two, second, batch)
    return nn.ModuleList([one, two])


@shape(8, epochs=1)
def one_optimizer_per_parameter(clock):
    model, _ = build()
    optimizers = [torch.optim.SGD([parameter], lr=0.01) for parameter in model.parameters()]
    for batch in clock.over(DataLoader(Rows(), batch_size=4)):
        loss_of(model, batch).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return model


@shape(8, epochs=1)
def lbfgs(clock):
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    for batch in clock.over(DataLoader(Rows(), batch_size=4)):

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss

        optimizer.step(closure)
    return model


@shape(6, share=False)
def lbfgs_without_loader(clock):
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    batch = torch.ones(4, 8), torch.ones(4, 1)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    for _ in range(6):
        optimizer.step(closure)
    return model


@shape(6, skipped=2, share=False)
def scaler_with_inf_gradients(clock):
    model, optimizer = build()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for number, batch in enumerate(DataLoader(Rows(), batch_size=4)):
        optimizer.zero_grad()
        loss = loss_of(model, batch) * (float("inf") if number in (2, 5) else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return model


@shape(7, failed=1, share=False)
def out_of_memory_in_backward_dropped(clock):
    model, optimizer = build()
    for number, batch in enumerate(DataLoader(Rows(), batch_size=4)):
        optimizer.zero_grad()
        try:
            loss = loss_of(model, batch)
            if number == 3:
                loss.register_hook(out_of_memory)
            loss.backward()
        except RuntimeError:
            continue
        optimizer.step()
    return model


@shape(8, share=False)
def out_of_memory_in_backward_retried(clock):
    model, optimizer = build()
    for number, (inputs, targets) in enumerate(DataLoader(Rows(), batch_size=4)):
        optimizer.zero_grad()
        try:
            loss = loss_of(model, (inputs, targets))
            if number == 3:
                loss.register_hook(out_of_memory)
            loss.backward()
        except RuntimeError:
            for half in (slice(0, 2), slice(2, 4)):
                loss_of(model, (inputs[half], targets[half])).backward()
        optimizer.step()
    return model


def out_of_memory(gradient):
    raise RuntimeError("out of memory")


@shape(7, share=False)
def exception_in_forward_caught(clock):
    model, optimizer = build()
    for number, batch in enumerate(DataLoader(Rows(), batch_size=4)):
        try:
            if number == 3:
                raise ValueError("a bad batch")
            update(model, optimizer, batch)
        except ValueError:
            continue
    return model


class Flaky(torch.optim.SGD):
    count = 0

    def step(self, closure=None):
        self.count += 1
        if self.count == 4:
            raise RuntimeError("an update that fails")
        return super().step(closure)


@shape(7, failed=1, share=False)
def update_raises_caught(clock):
    model, optimizer = build(Flaky)
    for batch in DataLoader(Rows(), batch_size=4):
        with contextlib.suppress(RuntimeError):
            update(model, optimizer, batch)
    return model


@shape(10, failed=1, share=False)
def dataset_raises_in_a_worker(clock):
    model, optimizer = build()
    for rows in (Rows(bad=8), Rows()):
        with contextlib.suppress(ValueError):
            for batch in DataLoader(rows, batch_size=4, num_workers=1):
                update(model, optimizer, batch)
    return model


@shape(8, epochs=1)
def lr_scheduler(clock):
    model, optimizer = build()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for batch in clock.over(DataLoader(Rows(), batch_size=4)):
        update(model, optimizer, batch)
        scheduler.step()
    return model


@shape(8, share=False)
def look_ahead(clock):
    model, optimizer = build()
    iterator = iter(DataLoader(Rows(36), batch_size=4))
    batch = next(iterator)
    for _ in range(8):
        following = next(iterator)
        update(model, optimizer, batch)
        batch = following
    return model


@shape(8, share=False)
def autograd_grad(clock):
    model, optimizer = build()
    for batch in DataLoader(Rows(), batch_size=4):
        parameters = list(model.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss_of(model, batch), parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return model


@shape(8, background=8, share=False)
def a_thread_prefetches(clock):
    model, optimizer = build()
    batches = queue.Queue(2)

    def fetch():
        for batch in DataLoader(Rows(sleep_s=0.003), batch_size=4):
            batches.put(batch)
        batches.put(None)

    update(model, optimizer, (torch.ones(4, 8), torch.ones(4, 1)))
    thread = threading.Thread(target=fetch)
    thread.start()
    number = 1
    while (batch := batches.get()) is not None:
        number += 1
        if number < 9:
            update(model, optimizer, batch)
    thread.join()
    return model


@shape(16, share=False)
def two_training_threads(clock):
    models = [build(), build()]

    def train(model, optimizer):
        for batch in DataLoader(Rows(), batch_size=4):
            update(model, optimizer, batch)

    threads = [threading.Thread(target=train, args=pair) for pair in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return nn.ModuleList([model for model, _ in models])


@shape(0, evaluation=8, share=False)
def inference_only(clock):
    model, _ = build()
    with torch.no_grad():
        for batch in DataLoader(Rows(), batch_size=4):
            loss_of(model, batch)
    return model


@shape(4, epochs=1)
def a_loader_inside_the_dataset(clock):
    return plain(clock, 1, DataLoader(Nested(), batch_size=2))


@shape(8, epochs=1)
def logging_after_every_fourth_step(clock):
    model, optimizer = build()
    for number, batch in enumerate(clock.over(DataLoader(Rows(), batch_size=4)), 1):
        update(model, optimizer, batch)
        if number % 4 == 0:
            time.sleep(0.02)
    return model


@shape(8, epochs=1, share=False)
def sharpness_aware_minimization(clock):
    model, optimizer = build()
    for batch in DataLoader(Rows(), batch_size=4):
        loss_of(model, batch).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(parameter.grad * 0.01)
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


class Silent(torch.optim.Optimizer):
    """An optimizer of one's own making, whose updates no hook sees."""

    def __init__(self, parameters, lr):
        self.parameters, self.lr = list(parameters), lr

    def zero_grad(self):
        for parameter in self.parameters:
            parameter.grad = None

    def step(self):
        with torch.no_grad():
            for parameter in self.parameters:
                parameter -= self.lr * parameter.grad


@shape(16, assumed=16, share=False)
def an_optimizer_that_no_hook_sees(clock):
    model, optimizer = build(Silent)
    loader = DataLoader(Rows(), batch_size=4)
    for _ in range(2):
        for batch in loader:
            update(model, optimizer, batch)
    return model


@shape(8, share=False)
def zero_sub_groups(clock):
    """The same optimizer three times per step, without a backward between."""
    model, optimizer = build()
    for batch in DataLoader(Rows(), batch_size=4):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        for _ in range(3):
            optimizer.step()
    return model


@shape(8, evaluation=4, share=False)
def evaluation_of_4_left_by_break_with_grad_at_the_fetch(clock):
    model, optimizer = build()
    loader, held_out = DataLoader(Rows(), batch_size=4), DataLoader(Rows(48), batch_size=4)
    for number, batch in enumerate(loader, 1):
        update(model, optimizer, batch)
        if number == 4:
            for count, rows in enumerate(held_out, 1):
                with torch.no_grad():
                    loss_of(model, rows)
                if count == 4:
                    break
    return model


@shape(11, epochs=2, share=False)
def curriculum_to_another_loader(clock):
    model, optimizer = build()
    for number, batch in enumerate(DataLoader(Rows(), batch_size=4), 1):
        if number == 4:
            break
        update(model, optimizer, batch)
    for batch in DataLoader(Rows(), batch_size=4):
        update(model, optimizer, batch)
    return model


@shape(8, share=False)
def the_shorter_loader_is_made_again_inside_the_step(clock):
    model, optimizer = build()
    short = DataLoader(Rows(12), batch_size=4)
    others = iter(short)
    for one in DataLoader(Rows(), batch_size=4):
        try:
            two = next(others)
        except StopIteration:
            others = iter(short)
            two = next(others)
        optimizer.zero_grad()
        (loss_of(model, one) + loss_of(model, two)).backward()
        optimizer.step()
    return model


@shape(8, epochs=2, samples=52, share=False)
def a_second_loader_joins_late(clock):
    model, optimizer = build()
    others = iter(DataLoader(Rows(), batch_size=4))
    for number, one in enumerate(DataLoader(Rows(), batch_size=4)):
        optimizer.zero_grad()
        loss = loss_of(model, one)
        if number >= 3:
            loss = loss + loss_of(model, next(others))
        loss.backward()
        optimizer.step()
    return model


@shape(16, epochs=2, samples=64)
def wasserstein_gan_three_to_one(clock):
    """Every update, of the critic or of the generator, uses a batch of its own."""
    (critic, first), (generator, second) = build(), build(torch.optim.Adam)
    loader = DataLoader(Rows(), batch_size=4)
    for _ in range(2):
        for number, batch in enumerate(clock.over(loader)):
            update(*((generator, second) if number % 4 == 3 else (critic, first)), batch)
    return nn.ModuleList([critic, generator])


@shape(8, epochs=1)
def an_optimizer_per_parameter_inside_backward(clock):
    model, _ = build()
    optimizers = {parameter: torch.optim.SGD([parameter], lr=0.01) for parameter in model.parameters()}

    def apply(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(apply)
    for batch in clock.over(DataLoader(Rows(), batch_size=4)):
        loss_of(model, batch).backward()
    return model


@shape(8, assumed=8, share=False)
def a_compiled_optimizer_step(clock):
    torch._dynamo.reset()
    model, optimizer = build()

    @torch.compile(backend="eager")
    def compiled():
        optimizer.step()

    for batch in DataLoader(Rows(), batch_size=4):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        compiled()
    torch._dynamo.reset()
    return model


@shape(8, epochs=1)
def gradient_checkpointing(clock):
    """A backward within a backward."""
    from torch.utils.checkpoint import checkpoint

    model, optimizer = build()
    for inputs, targets in clock.over(DataLoader(Rows(), batch_size=4)):
        optimizer.zero_grad()
        inputs.requires_grad_()
        nn.functional.mse_loss(checkpoint(model, inputs, use_reentrant=True), targets).backward()
        optimizer.step()
    return model


@shape(8, epochs=1)
def an_optimizer_behind_super(clock):
    """Its `step` calls the one of its base: nested updates."""

    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    model, optimizer = build(Mine)
    for batch in clock.over(DataLoader(Rows(), batch_size=4)):
        update(model, optimizer, batch)
    return model


@shape(7, failed=1, share=False)
def the_dataset_raises_in_the_training_thread(clock):
    model, optimizer = build()
    iterator = iter(DataLoader(Rows(bad=13), batch_size=4))
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return model
        except ValueError:
            continue
        update(model, optimizer, batch)


@shape(0, failed=1, evaluation=3, share=False)
def evaluation_raises(clock):
    model, _ = build()
    with contextlib.suppress(ValueError), torch.no_grad():
        for batch in DataLoader(Rows(bad=13), batch_size=4):
            loss_of(model, batch)
    return model


@shape(6, skipped=2, share=False)
def a_scaler_without_a_loader(clock):
    model, optimizer = build()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for number in range(8):
        optimizer.zero_grad()
        loss = loss_of(model, (torch.ones(4, 8), torch.ones(4, 1)))
        scaler.scale(loss * (float("inf") if number in (2, 5) else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    return model


@shape(8, epochs=1)
def a_scaler_with_two_optimizers_of_which_one_is_skipped(clock):
    """A step in which one optimizer updated is a step."""
    (one, first), (two, second) = build(), build()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for number, batch in enumerate(clock.over(DataLoader(Rows(), batch_size=4))):
        first.zero_grad()
        second.zero_grad()
        scaler.scale(loss_of(one, batch) * (float("inf") if number in (2, 5) else 1.0)).backward()
        scaler.scale(loss_of(two, batch)).backward()
        scaler.step(first)
        scaler.step(second)
        scaler.update()
    return nn.ModuleList([one, two])


@shape(8, epochs=1, samples=32)
def a_fetch_inside_the_closure(clock):
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batches = clock.over(DataLoader(Rows(), batch_size=4))
    batches_left = 8

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, next(batches))
        loss.backward()
        return loss

    while batches_left:
        optimizer.step(closure)
        batches_left -= 1
    return model


@shape(8, epochs=1)
def zero_redundancy_optimizer(clock):
    """Sharded optimizer under DDP, of one rank."""
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=0, world_size=1)
        try:
            plain_model, _ = build()
            model = DistributedDataParallel(plain_model)
            optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.01)
            for batch in clock.over(DataLoader(Rows(), batch_size=4)):
                update(model, optimizer, batch)
        finally:
            torch.distributed.destroy_process_group()
    return plain_model


@shape(1, epochs=1, samples=240, share=False)
def accumulation_of_60(clock):
    """Rounds without an update are micro-batches, once an update comes."""
    model, optimizer = build()
    for batch in DataLoader(Rows(240, sleep_s=0), batch_size=4):
        loss_of(model, batch).backward()
    optimizer.step()
    return model


@shape(8, epochs=1, samples=32)
def batches_fetched_under_no_grad(clock):
    model, optimizer = build()
    batches = clock.over(DataLoader(Rows(), batch_size=4))

    @torch.no_grad()
    def batch_of():
        return next(batches)

    for _ in range(8):
        update(model, optimizer, batch_of())
    next(batches, None)
    return model
