"""The U-Net without a server: which calls are of one picture, and what it refuses. Skipped where there is no diffusers."""

import json
import unittest
import warnings

try:
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load, save

    from lacuna.unet import UNet
except ImportError as missing:
    raise unittest.SkipTest(str(missing)) from missing

import lacuna
from lacuna import Call, Facts, LacunaError
from lacuna.client import HEADER


class Picture:
    def __init__(self, server: "Server", header: dict, told: dict) -> None:
        self.server, self.header, self.told = server, header, told
        self.timesteps: list[float] = []
        self.open = True
        self.seen: list[str] = []

    def call(self, message: bytes) -> tuple[bytes, Call]:
        if not self.open:
            raise LacunaError("gone", "gone")
        if self.server.error is not None:
            raise self.server.error
        header = head(message)
        self.timesteps.append(header["timestep"])
        sample = load(message)["sample"].float()
        return save({"sample": 2 * sample}, {HEADER: "{}"}), Call(0.0, 0, 0, list(self.server.told))

    def close(self) -> None:
        self.open = False


class Server:
    """What the client of a server would be: it doubles every sample."""

    def __init__(self, **config: object) -> None:
        self.facts = Facts("abc", "0.1.0", {"in_channels": 4, "sample_size": 8, **config}, (4, 64, 64))
        self.pictures: list[Picture] = []
        self.error: LacunaError | None = None
        self.told: list[str] = []

    def open(self, message: bytes) -> Picture:
        self.pictures.append(Picture(self, head(message), load(message)))
        return self.pictures[-1]

    def close(self) -> None:
        pass


def head(message: bytes) -> dict:
    length = int.from_bytes(message[:8], "little")
    return json.loads(json.loads(message[8 : 8 + length])["__metadata__"][HEADER])


SAMPLE = torch.ones(2, 4, 8, 8)


def prompt(value: float) -> "torch.Tensor":
    return torch.full((2, 7, 16), value)


class UNetTest(unittest.TestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.unet = UNet(self.server)

    def timesteps(self) -> list[list[float]]:
        return [picture.timesteps for picture in self.server.pictures]

    def test_it_is_what_pipelines_look_at(self) -> None:
        self.assertIsInstance(self.unet, UNet2DConditionModel)
        self.assertEqual(sum(1 for _ in self.unet.parameters()), 0)
        self.assertEqual(self.unet.config.in_channels, 4)
        # The default of diffusers.
        self.assertEqual(self.unet.config.time_cond_proj_dim, None)
        self.assertEqual((self.unet.dtype, self.unet.device.type), (torch.float32, "cpu"))
        self.unet.to(torch.float16)
        self.assertEqual(self.unet.dtype, torch.float16)
        output = self.unet(SAMPLE.half(), torch.tensor(7), prompt(1).half())
        self.assertEqual(output.sample.dtype, torch.float16)
        self.assertTrue(torch.equal(output.sample, 2 * SAMPLE.half()))
        self.assertEqual(self.server.pictures[0].told["encoder_hidden_states"].dtype, torch.float16)
        (plain,) = self.unet(SAMPLE, 6, prompt(1), return_dict=False)
        self.assertTrue(torch.equal(plain, 2 * SAMPLE))
        xl = UNet(Server(projection_class_embeddings_input_dim=72, addition_embed_type="text_time"))
        self.assertEqual(xl.add_embedding.linear_1.in_features, 72)

    def test_a_picture_is_one_run_of_a_pipeline(self) -> None:
        one, other = prompt(1), prompt(2)
        for timestep in (900, 900, 500, 100):
            self.unet(SAMPLE, timestep, one)
        # The same prompt again, as a pipeline encodes it anew, or has it given.
        for timestep in (900, 500):
            self.unet(SAMPLE, timestep, prompt(1))
        self.unet(SAMPLE, 900, one)
        self.unet(SAMPLE, 900, other)
        self.assertEqual(self.timesteps(), [[900, 900, 500, 100], [900, 500], [900], [900]])
        self.assertEqual([p.open for p in self.server.pictures], [False, False, True, True])
        # Another size.
        self.unet(torch.ones(2, 4, 8, 16), 900, other)
        self.assertEqual(self.server.pictures[-1].header, {"latents": [2, 8, 16]})
        self.unet.close()
        self.assertFalse(any(p.open for p in self.server.pictures))

    def test_a_picture_of_one_step_is_one(self) -> None:
        for _ in range(2):
            self.unet(SAMPLE, 999, prompt(1))
        self.assertEqual(self.timesteps(), [[999], [999]])

    def test_prompts_that_alternate_stay_open(self) -> None:
        one, other = prompt(1), prompt(2)
        for timestep in (900, 500, 100):
            self.unet(SAMPLE, timestep, one)
            self.unet(SAMPLE, timestep, other)
        self.assertEqual(self.timesteps(), [[900, 500, 100]] * 2)
        # Both are done when another one begins.
        self.unet(SAMPLE, 900, prompt(3))
        self.assertEqual([p.open for p in self.server.pictures], [False, False, True])

    def test_noise_that_goes_up_on_the_way_is_of_the_picture(self) -> None:
        one = prompt(1)
        for timestep in (900, 500, 700, 300):
            self.unet(SAMPLE, timestep, one)
        self.unet.end_picture()
        for timestep in (1, 300, 700):
            self.unet(SAMPLE, timestep, one)
        self.assertEqual(self.timesteps(), [[900, 500, 700, 300], [1, 300, 700]])

    def test_a_prompt_that_is_written_into_is_another_one(self) -> None:
        one = prompt(1)
        self.unet(SAMPLE, 900, one)
        one += 1
        self.unet(SAMPLE, 500, one)
        told = [float(p.told["encoder_hidden_states"].mean()) for p in self.server.pictures]
        self.assertEqual(told, [1.0, 2.0])

    def test_a_picture_that_is_gone_is_opened_again(self) -> None:
        one = prompt(1)
        self.unet(SAMPLE, 900, one)
        self.server.pictures[0].close()
        self.unet(SAMPLE, 500, one)
        self.assertEqual(self.timesteps(), [[900], [500]])

    def test_an_error_ends_the_picture(self) -> None:
        one = prompt(1)
        self.unet(SAMPLE, 900, one)
        self.server.error = lacuna.WorkerLost("it is gone", "worker", "http://w/")
        with self.assertRaisesRegex(lacuna.WorkerLost, "it is gone"):
            self.unet(SAMPLE, 500, one)
        self.server.error = None
        self.unet(SAMPLE, 500, one)
        self.assertEqual([p.open for p in self.server.pictures], [False, True])

    def test_a_worker_that_is_gone_on_without_is_a_warning(self) -> None:
        self.server.told = ["worker http://w/ does not answer; went on with 1 workers"]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.unet(SAMPLE, 900, prompt(1))
        self.assertEqual([w.category for w in caught], [lacuna.LacunaWarning])
        # Where it is called, not within this package or torch.
        self.assertEqual(caught[0].filename, __file__)

    def test_what_a_split_u_net_does_not_have_is_refused_by_name(self) -> None:
        more = {
            "down_block_additional_residuals": (SAMPLE,),
            "mid_block_additional_residual": SAMPLE,
            "down_intrablock_additional_residuals": (SAMPLE,),
            "attention_mask": SAMPLE,
            "encoder_attention_mask": SAMPLE,
            "class_labels": torch.zeros(2),
            "added_cond_kwargs": {"image_embeds": SAMPLE},
            "cross_attention_kwargs": {"scale": 0.5},
        }
        for name, value in more.items():
            with self.assertRaisesRegex(lacuna.NotSupported, name) as caught:
                self.unet(SAMPLE, 900, prompt(1), **{name: value})
            self.assertEqual(caught.exception.code, "not_supported")
        with self.assertRaisesRegex(lacuna.NotSupported, "several timesteps"):
            self.unet(SAMPLE, torch.tensor([1, 2]), prompt(1))
        with self.assertRaises(lacuna.Refused):
            self.unet(SAMPLE[0], 900, prompt(1))
        for name in ("load_lora_adapter", "_load_ip_adapter_weights", "enable_freeu", "fuse_lora", "save_pretrained"):
            with self.assertRaisesRegex(lacuna.NotSupported, name):
                getattr(self.unet, name)("somewhere")
        for name in ("attn_processors", "down_blocks"):
            with self.assertRaisesRegex(lacuna.NotSupported, name):
                getattr(self.unet, name)
            # Who only looks finds nothing.
            self.assertFalse(hasattr(self.unet, name))
        self.assertEqual(self.server.pictures, [])
        self.unet(SAMPLE, torch.tensor([5, 5]), prompt(1), cross_attention_kwargs={"scale": 1.0}, added_cond_kwargs={})


if __name__ == "__main__":
    unittest.main()
