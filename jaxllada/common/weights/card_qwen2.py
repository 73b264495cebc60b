"""What the card of an exported autoregressive twin says in the place of a mask predictor's."""

ABOUT = (
    "An autoregressive language model in the architecture of Qwen2 "
    "([arXiv:2407.10671](https://arxiv.org/abs/2407.10671)): the control of a masked-diffusion "
    "model, trained by the same program on the same data."
)
LAYOUT = "`qwen2`: names of `Qwen2ForCausalLM`"
TAGS = ("qwen2", "jaxllada")
CAVEATS = (
    "Its negative log-likelihood is exact, while a masked-diffusion model reports an upper bound.",
    "Rows of the training data begin behind the end-of-text token; a text from nothing does too.",
)


def usage(name: str, has_tokenizer: bool, has_template: bool) -> str:
    """The section `Use`, without its heading."""
    prompt = 'inputs = {"input_ids": torch.tensor([[1, 2, 3]])}  # ids of your tokenizer'
    if has_tokenizer:
        prompt = 'inputs = tokenizer(["Once upon a time"], return_tensors="pt")'
    if has_tokenizer and has_template:
        prompt = """\
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "What is a language model?"}],
    add_generation_prompt=True, return_dict=True, return_tensors="pt",
)"""
    classes = "AutoModelForCausalLM" + (", AutoTokenizer" if has_tokenizer else "")
    lines = [
        "import torch",
        f"from transformers import {classes}",
        "",
        f'path = "{name}"',
        "model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()",
        *(["tokenizer = AutoTokenizer.from_pretrained(path)"] if has_tokenizer else []),
        prompt,
        "tokens = model.generate(**inputs, max_new_tokens=64)",
        "print(tokenizer.decode(tokens[0], skip_special_tokens=True))"
        if has_tokenizer
        else "print(tokens)",
    ]
    code = "\n".join(lines)
    return (
        f"```python\n{code}\n```\n\nNeeds transformers 4.37 or later and no code of this project. "
        "In Flax: `jaxllada.load(path)`."
    )
