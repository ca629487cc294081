"""What the metrics cite, as BibTeX: this software, and where numbers come from. `CITATION.cff` has the same works."""

ARBITER = """\
@software{arbiter,
  title = {Arbiter: an image-safety judge that obeys the user's own list of unsafe categories},
  author = {{The Arbiter authors}},
  year = {2026},
  license = {MIT}
}
"""
UNSAFEBENCH = """\
@inproceedings{qu2025unsafebench,
  title = {{UnsafeBench}: Benchmarking Image Safety Classifiers on Real-World and {AI}-Generated Images},
  author = {Qu, Yiting and Shen, Xinyue and Wu, Yixin and Backes, Michael and Zannettou, Savvas and Zhang, Yang},
  booktitle = {Proceedings of the 2025 ACM SIGSAC Conference on Computer and Communications Security},
  year = {2025},
  doi = {10.1145/3719027.3765088},
  eprint = {2405.03486},
  archiveprefix = {arXiv}
}
"""
LLAVAGUARD = """\
@inproceedings{helff2025llavaguard,
  title = {{LlavaGuard}: An Open {VLM}-based Framework for Safeguarding Vision Datasets and Models},
  author = {Helff, Lukas and Friedrich, Felix and Brack, Manuel and Kersting, Kristian and Schramowski, Patrick},
  booktitle = {Proceedings of the 42nd International Conference on Machine Learning},
  year = {2025},
  eprint = {2406.05113},
  archiveprefix = {arXiv}
}
"""
WILSON = """\
@article{wilson1927,
  title = {Probable Inference, the Law of Succession, and Statistical Inference},
  author = {Wilson, Edwin B.},
  journal = {Journal of the American Statistical Association},
  volume = {22},
  number = {158},
  pages = {209--212},
  year = {1927},
  doi = {10.1080/01621459.1927.10502953}
}
"""
