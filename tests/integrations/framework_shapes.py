"""Loops that a framework writes: Accelerate, Trainer, Lightning, torchdata; those that are installed."""

import importlib.util
import logging
import tempfile
import warnings

import torch
from torch import nn
from torch.utils.data import DataLoader

from integrations.loop_shapes import Rows, build, loss_of, update

FRAMEWORKS = {}


def framework(module, expected_steps, **expected):
    """File a shape that needs *module*."""

    def file(function):
        is_there = importlib.util.find_spec(module) is not None
        FRAMEWORKS[function.__name__] = (function, {"steps": expected_steps, **expected}, None if is_there else module)
        return function

    return file


def accelerator(**options):
    from accelerate import Accelerator

    return Accelerator(cpu=True, **options)


@framework("accelerate", 16, epochs=2, samples=64, evaluation=8)
def accelerate_two_epochs_and_evaluation(clock):
    accelerated = accelerator()
    model, optimizer = build()
    loaders = DataLoader(Rows(), batch_size=4), DataLoader(Rows(), batch_size=4)
    model, optimizer, loader, held_out = accelerated.prepare(model, optimizer, *loaders)
    for _ in range(2):
        for batch in clock.over(loader):
            optimizer.zero_grad()
            accelerated.backward(loss_of(model, batch))
            optimizer.step()
    model.eval()
    for batch in held_out:
        with torch.no_grad():
            loss_of(model, batch)
    return model


@framework("accelerate", 5, epochs=1, samples=72)
def accelerate_accumulates_4_of_18(clock):
    accelerated = accelerator(gradient_accumulation_steps=4)
    model, optimizer = build()
    model, optimizer, loader = accelerated.prepare(model, optimizer, DataLoader(Rows(72), batch_size=4))
    for batch in clock.over(loader):
        with accelerated.accumulate(model):
            accelerated.backward(loss_of(model, batch))
            optimizer.step()
            optimizer.zero_grad()
    return model


@framework("transformers", 10, epochs=2, samples=144, evaluation=20, share=False)
def trainer_accumulates_4_of_18_and_evaluates(clock):
    from transformers import Trainer, TrainingArguments

    class Dicts(Rows):
        def __getitem__(self, index):
            inputs, labels = super().__getitem__(index)
            return {"inputs": inputs, "labels": labels}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, _ = build()

        def forward(self, inputs, labels):
            outputs = self.inner(inputs)
            return {"loss": nn.functional.mse_loss(outputs, labels), "outputs": outputs}

    torch.manual_seed(0)
    model = Model()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=2,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=4,
            gradient_accumulation_steps=4,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_pin_memory=False,
        )
        Trainer(model, arguments, train_dataset=Dicts(72), eval_dataset=Dicts(16)).train()
    return model


def fit(module, *loaders, **options):
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            **options,
        ).fit(module, *loaders)
    return module.inner


def lightning_module(*, is_manual=False, takes_iterator=False):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.inner, _ = build()
            self.automatic_optimization = not is_manual

        def configure_optimizers(self):
            first = torch.optim.SGD(self.inner.parameters(), lr=0.01)
            return [first, torch.optim.SGD(self.inner.parameters(), lr=0.01)] if is_manual else first

        def training_step(self, batch, index):
            if isinstance(batch, dict):
                return loss_of(self.inner, batch["one"]) + loss_of(self.inner, batch["two"])
            if is_manual:
                for optimizer in self.optimizers():
                    optimizer.zero_grad()
                    self.manual_backward(loss_of(self.inner, batch))
                    optimizer.step()
                return None
            return loss_of(self.inner, batch)

        def validation_step(self, batch, index):
            loss_of(self.inner, batch)

    class IteratorModule(Module):
        def training_step(self, dataloader_iter):
            batch, _, _ = next(dataloader_iter)
            return loss_of(self.inner, batch)

    return IteratorModule() if takes_iterator else Module()


@framework("lightning", 8, epochs=1, samples=64, evaluation=18, share=False)
def lightning_accumulates_2_and_validates(clock):
    loaders = DataLoader(Rows(64), batch_size=4), DataLoader(Rows(64), batch_size=4)
    return fit(lightning_module(), *loaders, accumulate_grad_batches=2, num_sanity_val_steps=2)


@framework("lightning", 8, samples=64, share=False)
def lightning_combined_loader(clock):
    from lightning.pytorch.utilities import CombinedLoader

    loaders = {"one": DataLoader(Rows(), batch_size=4), "two": DataLoader(Rows(), batch_size=4)}
    return fit(lightning_module(), CombinedLoader(loaders, "min_size"))


@framework("lightning", 8, epochs=1, samples=32, share=False)
def lightning_manual_with_two_optimizers(clock):
    return fit(lightning_module(is_manual=True), DataLoader(Rows(), batch_size=4))


@framework("lightning", 8, epochs=1, samples=32, share=False)
def lightning_step_that_takes_the_iterator(clock):
    return fit(lightning_module(takes_iterator=True), DataLoader(Rows(), batch_size=4))


@framework("torchdata", 16, epochs=2, samples=64)
def torchdata_stateful_loader(clock):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchdata.stateful_dataloader import StatefulDataLoader

        model, optimizer = build()
        loader = StatefulDataLoader(Rows(), batch_size=4, num_workers=2)
        for _ in range(2):
            for batch in clock.over(loader):
                update(model, optimizer, batch)
    return model
